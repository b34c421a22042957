"""Notices when the machine itself stands still, which no service can do anything about."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_NAP_S = 0.002
_LOOK_S = 0.02
_NOTICEABLE_S = 0.015
_STAT = Path("/proc/stat")
_STEAL = 8  # the column of what others had of a virtual machine's processor


class Canary:
    """A thread that naps and looks how much later than it wanted it woke up; and one that looks whether a
    processor was taken away, by the system's own count: the first may have been on another."""

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float]] = []  # one after the other
        self._noting = threading.Lock()
        self._wanted = 0
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Watch from now on, until each that has started it has stopped it."""
        self._wanted += 1
        if not self._threads:
            self._stopping.clear()
            watches: list[Callable[[], None]] = [self._nap, *([self._look] if _STAT.exists() else [])]
            self._threads = [threading.Thread(target=w, name="canary", daemon=True) for w in watches]
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """Watch no more, unless somebody else still wants it."""
        self._wanted -= 1
        if self._wanted == 0:
            self._stopping.set()
            for thread in self._threads:
                thread.join()
            self._threads = []

    def stalled_s(self, start: float, end: float) -> float:
        """The seconds between these two monotonic times at which the machine, or part of it, stood still."""
        return sum(max(0.0, min(end, to) - max(start, since)) for since, to in self.stalls)

    def _nap(self) -> None:
        while not self._stopping.is_set():
            due = time.monotonic() + _NAP_S
            time.sleep(_NAP_S)
            now = time.monotonic()
            if now - due > _NOTICEABLE_S:
                self._note(due, now)

    def _look(self) -> None:
        before, stolen = time.monotonic(), _stolen_s()
        while not self._stopping.wait(_LOOK_S):
            now, found = time.monotonic(), _stolen_s()
            if max(b - a for a, b in zip(stolen, found, strict=True)) > _NOTICEABLE_S:
                self._note(before, now)
            before, stolen = now, found

    def _note(self, since: float, to: float) -> None:
        """One more, which may have begun before others that are known have ended."""
        with self._noting:
            while self.stalls and self.stalls[-1][1] >= since:
                before = self.stalls.pop()
                since, to = min(since, before[0]), max(to, before[1])
            self.stalls.append((since, to))


def _stolen_s() -> list[float]:
    """For how long each processor has been taken away so far."""
    lines = [line.split() for line in _STAT.read_text().splitlines()]
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return [int(line[_STEAL]) * tick_s for line in lines if line[0].startswith("cpu") and line[0] != "cpu"]


CANARY = Canary()
