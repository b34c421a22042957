"""What a run of n samples costs, fitted live: t(n) = a*n + b, and whether batching pays.

Both services batch by this rule, so that neither makes a caller wait for company that gains nothing: a small
net saves its fixed costs, a net at 224 x 224 on a CPU is often fastest alone.
"""

import math
from collections.abc import Callable

_KEEP = 0.98  # what one run leaves of the weight of those before it: about the last 50 count
_KEEP_SLOW = 0.5  # the same, when a run took less than half of what was expected: those before were stalls
_KEEP_DEVIATION = 0.9
_FOLLOW = 0.2  # the part of a surprise that is put down to the machine's speed, and moves all that was seen
_GAIN = 0.05  # batching pays when it saves at least this share of the time
_ENOUGH = 1.0  # the least sum of squared deviations of 1/n that tells the fixed share: four pairs among ones
_TRUSTED_RUNS = 500  # the fixed share is looked at again after this many runs of always the same size
_OUTLIER = 3.0  # a run slower than expected by more than this many usual deviations is a stall
_USUAL = 0.1  # the least usual deviation, as a share of what was expected
_STEEPEST = -1.0  # the least fixed share: a batch that costs nearly twice its samples is batched no less


class BatchCost:
    """The seconds of a run by its number of samples, by least squares that forget.

    Each run gives a point (1/n, t/n): the line through them is t/n = a + b*(1/n), so that relative errors
    count alike for all sizes. Older runs weigh less and less. While runs are all of one size, their level is
    followed and the share of the fixed cost, b / (a + b), stays what it was.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds; only `age_s` looks at it."""
        self._clock = clock
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._deviation = 1.0
        self._share = 0.0
        self._told_runs_ago: int | None = None
        self._largest = self._last = 0
        self._observed: float | None = None

    @property
    def age_s(self) -> float | None:
        """Seconds since the last run that was observed, never negative; None before the first."""
        return None if self._observed is None else max(self._clock() - self._observed, 0.0)

    @property
    def told(self) -> bool:
        """Whether runs of several sizes have been seen, so that a batch's cost is more than a guess."""
        return self._told_runs_ago is not None

    @property
    def fixed_s(self) -> float | None:
        """b: the seconds that a run costs whatever its size; below zero when batches cost more than their
        samples alone. None before the first run."""
        alone = self.seconds(1)
        return None if alone is None else alone * self._share

    @property
    def per_sample_s(self) -> float | None:
        """a: the seconds that each further sample costs. None before the first run."""
        alone = self.seconds(1)
        return None if alone is None else alone * (1 - self._share)

    def observe(self, n: int, seconds: float) -> None:
        """A run of `n` samples took `seconds`; a time that no clock should give is left out.

        Raises `ValueError` for `n` below 1.
        """
        if n < 1:
            raise ValueError(f"a run has 1 or more samples, not {n}")
        if not (math.isfinite(seconds) and seconds > 0):
            return
        self._observed = self._clock()
        self._largest = max(self._largest, n)
        keep = _KEEP
        expected = self.seconds(n)
        # Before a batch's cost is known, a run of a new size is no surprise, whatever it takes.
        if expected is not None and (self._told_runs_ago is not None or n == self._last):
            off = seconds / expected - 1
            most = self._follow(off)
            if off > most:
                return
            keep = _KEEP_SLOW if off < -0.5 else _KEEP
        self._last = n
        x, y = 1 / n, seconds / n
        self._weight = self._weight * keep + 1
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y
        self._tell_share()

    def seconds(self, n: int) -> float | None:
        """What a run of `n` samples is expected to take; None before the first run.

        Until runs of several sizes have been seen, every sample is taken to cost as much as the first.
        """
        if not self._weight:
            return None
        x, y = self._x / self._weight, self._y / self._weight
        return y / self._shape(x) * self._shape(1 / n) * n

    def pays(self, n: int) -> bool:
        """Whether one run of `n` samples is expected to be clearly cheaper than `n` runs of one.

        False until runs of several sizes have been seen.
        """
        return n > 1 and self._told_runs_ago is not None and self._shape(1 / n) <= 1 - _GAIN

    def each(self, limit: int) -> float | None:
        """The seconds that one of many waiting samples costs, in runs of up to `limit`; None before the first
        run."""
        most = max(min(limit, 2 * max(self._largest, 1)), 1)
        if not self.pays(most):
            most = 1
        seconds = self.seconds(most)
        return None if seconds is None else seconds / most

    def best(self, waiting: int, limit: int) -> int:
        """How many of `waiting` samples the next run should take, from 1 to `limit`.

        As many as there are where batching pays, else one; never more than twice as many as were ever run,
        since a line is no promise far from its points. While the cost of a batch is not known, or was last
        looked at long ago, it is tried: a pair, or a single one where batches are the rule.
        """
        most = max(min(waiting, limit, 2 * max(self._largest, 1)), 1)
        if most > 1 and self._is_due():
            return 2 if self._x > 0.75 * self._weight else 1
        return most if self.pays(most) else 1

    def _is_due(self) -> bool:
        return self._told_runs_ago is None or self._told_runs_ago > _TRUSTED_RUNS

    def _shape(self, x: float) -> float:
        """Seconds per sample at 1/n = `x`, in units of a run of one; positive for x in (0, 1]."""
        return max(1 - self._share + self._share * x, 1e-9)

    def _follow(self, off: float) -> float:
        """Follow the machine's speed after a run that was `off`, a share of what was expected of it; the most
        that is usual.

        All that was seen moves with the speed: else a machine that slows down while small runs are the rule
        would look as if big ones were cheap. A stall of the machine is not a property of the model and moves
        little; yet it widens what is usual, so that a lasting change is believed after some runs.
        """
        most = _OUTLIER * max(self._deviation, _USUAL)
        self._deviation += (1 - _KEEP_DEVIATION) * (min(abs(off), most) - self._deviation)
        speed = 1 + _FOLLOW * min(off, most)
        self._y *= speed
        self._xy *= speed
        return most

    def _tell_share(self) -> None:
        """The fixed share, where sizes differ enough to tell it, never so that a time would be negative."""
        x, y = self._x / self._weight, self._y / self._weight
        spread = self._xx - self._x * x
        if spread < _ENOUGH:
            if self._told_runs_ago is not None:
                self._told_runs_ago += 1
            return
        fixed = (self._xy - self._x * y) / spread
        each = y - fixed * x
        if each <= 0:
            self._share = 1.0
        else:
            self._share = max(fixed / (each + fixed), _STEEPEST) if each + fixed > 0 else _STEEPEST
        self._told_runs_ago = 0
