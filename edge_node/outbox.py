"""The outbox: samples on their way to the disk, by one thread that writes, and from there to the forwarder.

Whoever calls waits for nothing: a sample is handed over through a queue that is bounded in bytes, and what
has come by then is written in one transaction, so that one wait for the disk serves all. While the disk
fails, samples stay in that queue as long as there is room, and the disk is tried again once a second.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from edge_node.outbox_metrics import OutboxMetrics
from edge_node.sample_store import Sample, SampleStore, Tally, broken, set_file_aside

_TIDY_S = 30.0  # at the latest, even where nothing comes
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Put:
    """A sample; its future says whether it is on disk."""

    sample: Sample
    future: Future[bool] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Task(Generic[_T]):
    """Something else to do in the next transaction; None comes of it where that fails."""

    run: Callable[[SampleStore], _T]
    future: Future[_T | None] = field(default_factory=Future)


class Outbox:
    """One database of samples. Its methods may be called from any thread, and return at once."""

    def __init__(
        self,
        path: Path,
        metrics: OutboxMetrics,
        *,
        synchronous: str = "full",
        max_bytes: int,
        max_age_s: float,
        max_waiting_bytes: int = 8 << 20,
        retry_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes` and `max_age_s` bound what is kept on disk, `max_waiting_bytes` what waits for it.
        `clock` gives seconds since 1970; a disk that has failed is tried again after `retry_s`."""
        self._path = path
        self._metrics = metrics
        self._open: Callable[[], SampleStore] = partial(
            SampleStore, path, synchronous=synchronous, max_bytes=max_bytes, max_age_s=max_age_s
        )
        self._max_waiting_bytes = max_waiting_bytes
        self._retry_s = retry_s
        self._clock = clock
        self._store: SampleStore | None = None
        self._failing = False
        self._try_at = 0.0
        self._tidy_s = 0.0  # the database is opened before anything has come
        # Handed over, and guarded by the condition.
        self._changed = threading.Condition()
        self._puts: deque[_Put] = deque()
        self._tasks: deque[_Task[object]] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._depth, self._bytes = 0, 0
        self._oldest: float | None = None
        metrics.watch(lambda: self._depth, lambda: self._bytes, self._age_s)
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)

    def start(self) -> None:
        """Open the database, or begin one, and write from now on."""
        self._thread.start()

    @property
    def depth(self) -> int:
        """Samples on disk that wait to be forwarded."""
        return self._depth

    def put(self, sample: Sample) -> Future[bool]:
        """Hand over a sample. The future says whether it is on disk; nobody needs to wait for it."""
        put = _Put(sample)
        with self._changed:
            room = self._waiting_bytes + sample.bytes <= self._max_waiting_bytes or not self._puts
            if room and not self._closing:
                if self._failing:  # whoever waits for an acknowledgement would wait in vain
                    put.future.set_result(False)
                self._puts.append(put)
                self._waiting_bytes += sample.bytes
                self._changed.notify()
                return put.future
        self._metrics.dropped.labels("storage" if self._failing else "queue").inc()
        put.future.set_result(False)
        return put.future

    def next(self) -> Future[tuple[Sample, int] | None]:
        """The sample to forward now and how often that has failed; None where there is none, or no disk."""
        return self._do(lambda store: store.next(self._clock()))

    def forwarded(self, key: str) -> Future[bool | None]:
        """The cloud has this one. True when it is gone here, None where the disk fails."""
        return self._do(lambda store: store.forwarded(key))

    def put_aside(self, key: str) -> Future[bool | None]:
        """The cloud will never take this one."""
        return self._do(lambda store: store.put_aside(key))

    def defer(self, key: str, seconds: float, *, failed: bool) -> Future[bool | None]:
        """Forward this one no sooner than in so many seconds; `failed` counts as a try."""
        return self._do(lambda store: store.defer(key, self._clock() + seconds, failed=failed))

    def defer_bundle(self, digest: str, seconds: float) -> Future[int | None]:
        """Forward no sample from this bundle sooner than in so many seconds; some at a time."""

        def run(store: SampleStore) -> int:
            now = self._clock()
            return store.defer_bundle(digest, now, now + seconds)

        return self._do(run)

    def close(self, timeout_s: float) -> bool:
        """Write what was handed over and close the database; whether that was done within `timeout_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _do(self, run: Callable[[SampleStore], _T]) -> Future[_T | None]:
        task = _Task(run)
        with self._changed:
            if self._closing:
                task.future.set_result(None)
            else:
                self._tasks.append(task)  # type: ignore[arg-type]
                self._changed.notify()
        return task.future

    def _age_s(self) -> float:
        return 0.0 if self._oldest is None else max(self._clock() - self._oldest, 0.0)

    def _work(self) -> None:
        """What the thread does: all that waits, in one transaction after the other."""
        closing = False
        while not closing:
            puts, tasks, closing = self._gather()
            try:
                self._write(puts, tasks)
            except (sqlite3.Error, OSError) as error:
                self._failed(error, puts)
            except Exception:  # noqa: BLE001 - a bug must not end the outbox
                _log.exception("the outbox failed unexpectedly; %d samples are dropped", len(puts))
                self._metrics.errors.inc()
                self._drop(puts)
            finally:
                for task in tasks:
                    if not task.future.done():
                        task.future.set_result(None)
        self._drop(tuple(self._puts))
        if self._store is not None:
            with contextlib.suppress(sqlite3.Error):  # what could not be written was counted above
                self._store.close()

    def _gather(self) -> tuple[list[_Put], list[_Task[object]], bool]:
        """Wait for something to do. Samples stay in the queue until they are on disk or dropped."""
        with self._changed:
            pause = self._try_at - time.monotonic()
            if self._failing:
                self._changed.wait_for(lambda: self._closing or bool(self._tasks), max(pause, 0.0))
            else:
                self._changed.wait_for(lambda: self._closing or bool(self._puts or self._tasks), self._tidy_s)
            self._tidy_s = _TIDY_S
            tasks = list(self._tasks)
            self._tasks.clear()
            return list(self._puts), tasks, self._closing

    def _write(self, puts: list[_Put], tasks: list[_Task[object]]) -> None:
        if self._failing and time.monotonic() < self._try_at and not self._closing:
            self._tell(puts, on_disk=False)
            return
        if self._store is None:
            self._store = self._open()
        store = self._store
        store.begin(self._clock())
        for put in puts:
            store.put(put.sample)
        done = [task.run(store) for task in tasks]
        # Some may have had to go again at once.
        held = [store.holds(put.sample.key) for put in puts]
        oldest = store.oldest()
        tally = store.commit()
        self._written(puts, tally, oldest)
        for put, is_there in zip(puts, held, strict=True):
            if not put.future.done():
                put.future.set_result(is_there)
        for task, value in zip(tasks, done, strict=True):
            task.future.set_result(value)

    def _written(self, puts: list[_Put], tally: Tally, oldest: float | None) -> None:
        if self._store is not None:
            self._depth, self._bytes = self._store.waiting, self._store.bytes
            self._metrics.set_aside.set(self._store.set_aside)
        self._oldest = oldest
        metrics = self._metrics
        for (model, reason), count in tally.kept.items():
            metrics.kept.labels(model, reason).inc(count)
        for reason, count in tally.dropped.items():
            metrics.dropped.labels(reason).inc(count)
        metrics.forwarded.inc(tally.forwarded)
        metrics.poisoned.inc(tally.set_aside)
        metrics.writable.set(1)
        self._take(puts)
        if self._failing:
            self._failing = False
            _log.info("the outbox %s is written again", self._path)

    def _failed(self, error: Exception, puts: list[_Put]) -> None:
        """Let the file go, and try again by and by: whatever was not acknowledged is still in the queue."""
        self._metrics.errors.inc()
        self._metrics.writable.set(0)
        if self._store is not None:
            with contextlib.suppress(sqlite3.Error):  # it fails already
                self._store.close()
            self._store = None
        if not self._failing:
            self._failing = True
            hint = "" if self._path.parent.is_dir() else ": its folder must exist"
            _log.error(
                "the outbox %s cannot be written: %s%s; samples wait in memory, the limit is %d bytes",
                self._path, error, hint, self._max_waiting_bytes,
            )  # fmt: skip
        self._try_at = time.monotonic() + self._retry_s
        self._tell(puts, on_disk=False)
        if isinstance(error, sqlite3.Error) and broken(error):
            self._begin_anew()

    def _begin_anew(self) -> None:
        try:
            aside = set_file_aside(self._path, self._clock)
        except OSError as error:
            _log.error("the outbox %s is damaged and cannot be set aside: %s", self._path, error)
            return
        self._try_at = 0.0
        _log.error("the outbox %s is damaged: set aside as %s; a new one is begun", self._path, aside.name)

    def _tell(self, puts: list[_Put], *, on_disk: bool) -> None:
        """Who waits for an acknowledgement waits no longer."""
        for put in puts:
            if not put.future.done():
                put.future.set_result(on_disk)

    def _drop(self, puts: list[_Put] | tuple[_Put, ...]) -> None:
        self._metrics.dropped.labels("storage").inc(len(puts))
        self._tell(list(puts), on_disk=False)
        self._take(puts)

    def _take(self, puts: list[_Put] | tuple[_Put, ...]) -> None:
        """Off the queue, from its front."""
        with self._changed:
            for put in puts:
                self._puts.popleft()
                self._waiting_bytes -= put.sample.bytes
