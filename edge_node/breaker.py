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
    """Counts outcomes of calls. Every permit from `allow` is handed back once, with what came of the call:
    to `success`, `failure` or `abandon`.

    A permit is the number of the state it was given in. What comes of a call that is older than the present
    state says nothing about it, and must not let a second call try beside the first.
    """

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
        self._period = 0
        self.state = State.CLOSED

    def blocks(self, now: float) -> bool:
        """Whether `allow` would give no permit; changes nothing."""
        if self.state is State.OPEN:
            return now < self._retry_at
        return self.state is State.HALF_OPEN and self._probing

    def allow(self, now: float) -> int | None:
        """A permit for one call, or None; in the half-open state one call at a time gets it."""
        if self.blocks(now):
            return None
        if self.state is State.OPEN:
            self._go(State.HALF_OPEN)
        self._probing = self.state is State.HALF_OPEN
        return self._period

    def success(self, permit: int) -> None:
        """The call was answered in time."""
        if permit == self._period:
            self._failures = 0
            self._go(State.CLOSED)

    def failure(self, permit: int, now: float) -> None:
        """The call was not answered, late, or answered with an error of the cloud's own."""
        if permit != self._period:
            return
        self._failures += 1
        if self.state is State.HALF_OPEN or self._failures >= self._limit:
            self._retry_at = now + self._open_s * self._jitter()
            self._go(State.OPEN)

    def abandon(self, permit: int) -> None:
        """The call says nothing about the cloud: it was cancelled, or never left."""
        if permit == self._period:
            self._probing = False

    def _go(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._period += 1
            self._failures = 0
            self._probing = False
            self._on_change(state)
