"""Notices when the machine itself stands still, which no service can do anything about."""

import threading
import time

_NAP_S = 0.002
_NOTICEABLE_S = 0.015


class Canary:
    """A thread that naps and looks how much later than it wanted it woke up."""

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="canary", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopping.set()
        self._thread.join()

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
