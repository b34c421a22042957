"""The circuit breaker: leaves a failing cloud alone, then lets one call try. Pure; the clock is passed in.

closed --(failures in a row)--> open --(a while)--> half open --(success)--> closed
                                  ^                     |
                                  +------(failure)------+
"""

from collections.abc import Callable
from enum import IntEnum


class State(IntEnum):
    """The breaker's state; the numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Counts outcomes of calls. Every `allow` that says yes is followed by exactly one of
    `success`, `failure` and `abandon`."""

    def __init__(
        self,
        failures: int,
        open_s: float,
        jitter: Callable[[], float],
        on_change: Callable[[State], object],
    ) -> None:
        """Opens after `failures` in a row for `open_s` seconds times `jitter()`, a number around 1, so
        that many edge nodes do not come back at the same moment."""
        self._limit = failures
        self._open_s = open_s
        self._jitter = jitter
        self._on_change = on_change
        self._failures = 0
        self._retry_at = 0.0
        self._probing = False
        self.state = State.CLOSED

    def blocks(self, now: float) -> bool:
        """Whether `allow` would say no; changes nothing."""
        if self.state is State.OPEN:
            return now < self._retry_at
        return self.state is State.HALF_OPEN and self._probing

    def allow(self, now: float) -> bool:
        """Whether a call may be made; in the half-open state one at a time may."""
        if self.blocks(now):
            return False
        if self.state is State.OPEN:
            self._go(State.HALF_OPEN)
        self._probing = self.state is State.HALF_OPEN
        return True

    def success(self) -> None:
        """The call was answered in time."""
        self._failures = 0
        self._probing = False
        self._go(State.CLOSED)

    def failure(self, now: float) -> None:
        """The call was not answered, late, or answered with an error of the cloud's own."""
        if self.state is State.OPEN:  # a straggler from before it opened
            return
        self._failures += 1
        self._probing = False
        if self.state is State.HALF_OPEN or self._failures >= self._limit:
            self._retry_at = now + self._open_s * self._jitter()
            self._go(State.OPEN)

    def abandon(self) -> None:
        """The call says nothing about the cloud: it was cancelled, or never left."""
        self._probing = False

    def _go(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._on_change(state)
