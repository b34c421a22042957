"""Notices when the machine itself stands still, which no service can do anything about."""

import os
import sys
import threading
import time

_NAP_S = 0.002
_NOTICEABLE_S = 0.015


class Canary:
    """Threads that nap, one on each processor, and look how much later than they wanted they woke up: what
    is stolen from a service may be stolen from its processor alone."""

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
            self._threads = [
                threading.Thread(target=self._watch, args=(cpu,), name=f"canary-{cpu}", daemon=True)
                for cpu in _processors()
            ]
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

    def _watch(self, cpu: int) -> None:
        if sys.platform == "linux":
            os.sched_setaffinity(threading.get_native_id(), {cpu})
        while not self._stopping.is_set():
            due = time.monotonic() + _NAP_S
            time.sleep(_NAP_S)
            now = time.monotonic()
            if now - due > _NOTICEABLE_S:
                self._note(due, now)

    def _note(self, since: float, to: float) -> None:
        """One more, which may have begun before others that are known have ended."""
        with self._noting:
            while self.stalls and self.stalls[-1][1] >= since:
                before = self.stalls.pop()
                since, to = min(since, before[0]), max(to, before[1])
            self.stalls.append((since, to))


def _processors() -> list[int]:
    """Those that this process may use; elsewhere nobody can choose, and one thread looks at them all."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]


CANARY = Canary()
