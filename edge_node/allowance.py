"""What the node may send up: how often, how much, and whether at all. Pure; the clock is passed in.

Whatever is sent counts, answered or not: requests, second tries, hedges and trials; of probes, the bytes.
"""

import math
from collections import deque
from dataclasses import dataclass

from edge_node.cloud import Attempt
from inference_core.errors import AllowanceSpent, SwitchedOff

_HOUR_S = 3600.0
_DAY_H = 24
_OTHERS = frozenset({Attempt.PROBE, Attempt.SAMPLE})  # which are no escalations: only their bytes count


@dataclass(frozen=True, slots=True)
class Budgets:
    """The limits; 0 is none. `interval_s` is the least time between two requests that go up."""

    interval_s: float = 0.0
    per_s: float = 0.0
    bytes_per_s: float = 0.0
    bytes_per_day: int = 0


class _Bucket:
    """So many a second, and no more than one second's worth, or one, at a time. It may be overdrawn by one:
    what is larger than the bucket goes when there is anything in it, and the rest waits for it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(rate, 1.0)
        self._left = self._most
        self._at = -math.inf

    def level(self, now: float) -> float:
        if now > self._at:
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
            self._at = now
        return self._left

    def take(self, amount: float) -> None:
        self._left -= amount


class Allowance:
    """The node's right to escalate. `enabled` may be set at any time."""

    def __init__(self, budgets: Budgets, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._budgets = budgets
        self._calls = _Bucket(budgets.per_s) if budgets.per_s else None
        self._bytes = _Bucket(budgets.bytes_per_s) if budgets.bytes_per_s else None
        self._limited = budgets != Budgets()
        self._next = -math.inf
        self._hours: deque[list[int]] = deque(maxlen=_DAY_H + 1)  # number of the hour, bytes in it

    def check(self, now: float, kind: Attempt = Attempt.FIRST, nbytes: int = 1) -> None:
        """Raise `SwitchedOff` or `AllowanceSpent` where a message of so many bytes may not go up now."""
        limits = self._budgets
        if not self.enabled:
            raise SwitchedOff("escalation is switched off")
        if not self._limited:
            return
        if limits.interval_s and kind in (Attempt.FIRST, Attempt.TRIAL) and now < self._next:
            raise AllowanceSpent(f"less than {limits.interval_s:g} s since the last escalation")
        # A call needs its whole token: rounding must not cost it one.
        if kind not in _OTHERS and self._calls is not None and self._calls.level(now) < 1 - 1e-9:
            raise AllowanceSpent(f"more than {limits.per_s:g} escalations a second")
        if self._bytes is not None and self._bytes.level(now) <= 0:
            raise AllowanceSpent(f"more than {limits.bytes_per_s:g} bytes a second")
        if limits.bytes_per_day and self.day_bytes(now) + nbytes > limits.bytes_per_day:
            raise AllowanceSpent(f"more than {limits.bytes_per_day} bytes in 24 hours")

    def take(self, now: float, kind: Attempt, nbytes: int) -> None:
        """A message of so many bytes goes up. Raises what `check` does, and takes nothing then."""
        self.check(now, kind, nbytes)
        if kind in (Attempt.FIRST, Attempt.TRIAL):
            self._next = now + self._budgets.interval_s
        if kind not in _OTHERS and self._calls is not None:
            self._calls.take(1.0)
        if self._bytes is not None:
            self._bytes.take(nbytes)
        hour = int(now // _HOUR_S)
        if not self._hours or self._hours[-1][0] != hour:
            self._hours.append([hour, 0])
        self._hours[-1][1] += nbytes

    def day_bytes(self, now: float) -> int:
        """Bytes sent in the last 24 hours, and in what is over of the first of these; since the node's
        start at most. May be called from any thread."""
        first = int(now // _HOUR_S) - _DAY_H
        return sum(nbytes for hour, nbytes in tuple(self._hours) if hour >= first)
