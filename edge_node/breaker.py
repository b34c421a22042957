"""The circuit breaker: leaves a cloud that fails or is slow alone, then lets one call try. Pure; the clock is
passed in.

What a call says depends on its patience: no answer within t seconds says as much for every call that would
have waited less, an answer after t seconds for every one that would have waited longer. So what opens is a
level: calls with no more patience than that are left out, the others are made, and those that an answer would
reach in time never pay for those that it would not.

closed --(failures in a row, or too large a share)--> open up to a level --(a while)--> one call tries
   ^                                                         ^                            |     |
   |                                                         +-------(no answer)----------+     |
   +------------------------------(an answer sooner than the level)-----------------------------+
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

# Patience up to so many times another is taken for the same: devices with one deadline have a little more or
# less of it left when the cloud is asked.
ALIKE = 1.5


class State(IntEnum):
    """The breaker's state towards a call of usual patience; the numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Permit(NamedTuple):
    """Leave to make one call: when it was given, in changes of the breaker, and whether it is the trial."""

    period: int
    trial: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """When to open: after `failures` in a row, or with as many among the last `window` calls once they are
    `share` of those that tell, and these `least`; an answer after more than `slow_s` seconds is a failure."""

    failures: int
    window: int = 50
    share: float = 0.5
    least: int = 10
    slow_s: float = math.inf


class Call(NamedTuple):
    """What came of one call: failed for all with up to so many seconds of patience, or answered then."""

    seconds: float
    failed: bool


class Breaker:
    """Judges calls by their outcomes. Every permit from `allow` or `trial` is handed back once, with what
    came of the call: to `success`, `failure` or `abandon`.

    What comes of a call that was begun before the breaker closed says nothing about what has been since.
    """

    def __init__(
        self,
        rules: Rules,
        open_s: float,
        jitter: Callable[[], float],
        on_change: Callable[[State], object],
        usual_s: float = 0.0,
    ) -> None:
        """Open for `open_s` seconds times `jitter()`, a number around 1, so that many edge nodes do not come
        back at the same moment. `state` is told for calls with `usual_s` seconds of patience."""
        self._rules = rules
        self._open_s = open_s
        self._jitter = jitter
        self._on_change = on_change
        self._usual_s = usual_s
        self._calls: deque[Call] = deque(maxlen=rules.window)
        self._period = 0
        self._permit = Permit(0, trial=False)
        self._trial: Permit | None = None
        self._retry_at = 0.0
        self.level = 0.0
        self.state = State.CLOSED

    def blocks(self, patience_s: float) -> bool:
        """Whether a call that can wait so long is left out; changes nothing."""
        return patience_s <= self.level

    def allow(self, patience_s: float) -> Permit | None:
        """A permit for one call that can wait so long, or None."""
        return None if patience_s <= self.level else self._permit

    def due(self, now: float) -> bool:
        """Whether it is time for a trial, and none under way."""
        return self.level > 0 and self._trial is None and now >= self._retry_at

    def hurry(self, now: float) -> None:
        """There may be another connection: have the next trial now."""
        self._retry_at = min(self._retry_at, now)

    def trial(self, now: float) -> Permit | None:
        """A permit for the one call that finds out, or None while it is not due."""
        if not self.due(now):
            return None
        self._trial = Permit(self._period, trial=True)
        self._tell()
        return self._trial

    def success(self, permit: Permit, seconds: float, now: float) -> None:
        """The call was answered after so many seconds."""
        if seconds > self._rules.slow_s:
            self.failure(permit, math.inf, now)
            return
        if permit is self._permit and not self.level:
            self._calls.append(Call(seconds, failed=False))
            return
        self._ended(permit)
        if permit.period == self._period:
            self._calls.append(Call(seconds, failed=False))
            if seconds < self.level and (permit.trial or now >= self._retry_at):
                self._close()
            elif permit.trial:
                self._wait(now)
        self._tell()

    def failure(self, permit: Permit, patience_s: float, now: float) -> None:
        """The call was not answered within `patience_s`; infinite for an error of the cloud's own."""
        self._ended(permit)
        if permit.period == self._period:
            self._calls.append(Call(patience_s * ALIKE, failed=True))
            level = verdict(self._calls, self._rules)
            if permit.trial or level > self.level:
                self.level = max(self.level, level)
                self._wait(now)
        self._tell()

    def abandon(self, permit: Permit) -> None:
        """The call says nothing about the cloud: it was cancelled, or never left."""
        self._ended(permit)
        self._tell()

    def _ended(self, permit: Permit) -> None:
        if permit is self._trial:
            self._trial = None

    def _wait(self, now: float) -> None:
        self._retry_at = now + self._open_s * self._jitter()

    def _close(self) -> None:
        self.level = 0.0
        self._period += 1
        self._permit = Permit(self._period, trial=False)
        self._trial = None
        self._calls.clear()

    def _tell(self) -> None:
        state = State.CLOSED
        if self.level >= self._usual_s and self.level > 0:
            state = State.OPEN if self._trial is None else State.HALF_OPEN
        if state is not self.state:
            self.state = state
            self._on_change(state)


def verdict(calls: Iterable[Call], rules: Rules) -> float:
    """The most patience with which calls are in vain, by what came of these, the oldest first; 0 for none."""
    calls = tuple(calls)
    return max(_by_row(calls, rules.failures), _by_share(calls, rules))


def _by_row(calls: tuple[Call, ...], failures: int) -> float:
    """The most patience for which there were so many failures since the last answer in time."""
    level, sooner, reaches = 0.0, math.inf, list[float]()
    for call in reversed(calls):
        if not call.failed:
            sooner = min(sooner, call.seconds)
            continue
        insort(reaches, call.seconds)
        if len(reaches) >= failures:
            level = max(level, min(reaches[-failures], sooner))
    return level


def _by_share(calls: tuple[Call, ...], rules: Rules) -> float:
    """The most patience for which so many calls failed, and such a share of those that tell: an answer later
    than that says nothing."""
    bad, good = 0, sum(not call.failed for call in calls)
    for call in sorted(calls, reverse=True):
        bad += call.failed
        good -= not call.failed
        told = bad + good
        if bad >= rules.failures and told >= rules.least and bad >= rules.share * told:
            return call.seconds
    return 0.0
