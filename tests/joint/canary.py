"""Notices when the machine itself stands still, which no service can do anything about."""

import threading
import time

_NAP_S = 0.002
_NOTICEABLE_S = 0.015


class Canary:
    """A thread that naps and looks how much later than it wanted it woke up."""

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float]] = []
        self._wanted = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch from now on, until each that has started it has stopped it."""
        self._wanted += 1
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._watch, name="canary", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more, unless somebody else still wants it."""
        self._wanted -= 1
        if self._wanted == 0 and self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def stalled_s(self, start: float, end: float) -> float:
        """The seconds between these two monotonic times at which the machine stood still."""
        return sum(max(0.0, min(end, to) - max(start, since)) for since, to in self.stalls)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            due = time.monotonic() + _NAP_S
            time.sleep(_NAP_S)
            now = time.monotonic()
            if now - due > _NOTICEABLE_S:
                self.stalls.append((due, now))


CANARY = Canary()
