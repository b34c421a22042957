"""Ends model runs that take far too long, from a thread of its own: the run may hold up the event loop's.

A run that is over its limit is told to end, which ONNX Runtime heeds between two nodes. One that is still
there a second later sits in a single node and heeds nothing: its thread and its session are given up.
"""

import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import onnxruntime as ort

USUAL_TIMES = 20  # a run may take so many times what runs of its engine took at load, whatever the limit
_DEAF_S = 1.0  # from being told to end until a run counts as stuck
_log = logging.getLogger(__name__)


class Event(StrEnum):
    """What became of a run or of an engine: told to end, not to be ended, given a new session."""

    ABANDONED = "abandoned"
    STUCK = "stuck"
    RESTARTED = "restarted"


class Watched(Protocol):
    """An engine whose runs are watched."""

    name: str
    model: str
    usual_s: float

    def stuck(self) -> None:
        """A run of it cannot be ended. Called from the watchdog's thread."""


class Run:
    """One run under way: whose it is, what ends it, since when and on which thread."""

    __slots__ = ("engine", "options", "since", "stuck", "thread", "told")

    def __init__(self, engine: Watched) -> None:
        self.engine = engine
        self.options = ort.RunOptions()
        self.thread = threading.get_ident()
        self.told = 0.0  # when it was told to end; 0 for never
        self.stuck = False
        self.since = time.monotonic()


class Watchdog:
    """Watches the runs of one process between `start` and `stop`."""

    def __init__(self, limit_s: float, on_event: Callable[[Event, str], object] | None = None) -> None:
        """A run may take `limit_s` seconds, or `USUAL_TIMES` the usual of its engine where that is more.
        `on_event` is told what happens and to which model, from any thread."""
        self.limit_s = limit_s
        self._on_event = on_event
        self._on_stuck: list[Callable[[int], object]] = []
        self._runs: set[Run] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def on_stuck(self, tell: Callable[[int], object]) -> None:
        """`tell` is told the identity of each thread that a run will not give back."""
        self._on_stuck.append(tell)

    def tell(self, event: Event, model: str) -> None:
        """Count what happened to `model`."""
        if self._on_event is not None:
            self._on_event(event, model)

    @property
    def under_way(self) -> bool:
        """Whether any run has begun and not ended."""
        return bool(self._runs)

    def begin(self, engine: Watched) -> Run:
        """Note that the calling thread begins a run of `engine`, and have what ends it."""
        run = Run(engine)
        self._runs.add(run)
        return run

    def end(self, run: Run) -> None:
        """The run is over."""
        self._runs.discard(run)

    def start(self) -> None:
        """Watch from now on."""
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(min(0.25, self.limit_s / 4)):
            now = time.monotonic()
            for run in self._runs.copy():
                try:
                    self._look_at(run, now)
                except Exception:  # noqa: BLE001 - who ends runs must not end itself
                    _log.exception(
                        "%s of %s: its run cannot be dealt with", run.engine.name, run.engine.model
                    )

    def _look_at(self, run: Run, now: float) -> None:
        engine = run.engine
        if run.told:
            if not run.stuck and now - run.told > _DEAF_S:
                run.stuck = True
                _log.error(
                    "%s of %s: the run cannot be ended; its thread is given up", engine.name, engine.model
                )
                self.tell(Event.STUCK, engine.model)
                for tell in self._on_stuck:
                    tell(run.thread)
                engine.stuck()
        elif now - run.since > max(self.limit_s, USUAL_TIMES * engine.usual_s):
            run.told = now
            run.options.terminate = True
            _log.error("%s of %s: a run is ended after %.1f s", engine.name, engine.model, now - run.since)
            self.tell(Event.ABANDONED, engine.model)
