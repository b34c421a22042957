"""A straight line through noisy transfer times, learned as they come. Pure.

    seconds = round trip + bytes up * pace up + bytes down * pace down

Weighted recursive least squares with exponential forgetting (Haykin, "Adaptive Filter Theory", chapter on
RLS), kept as sums, so that forgetting is one multiplication; a weak prior stands for what links are usually
like and keeps every question answerable. Paces are seconds per byte. No parameter is ever negative.
"""

from dataclasses import dataclass

Vector = tuple[float, float, float]

# Before anything is known: 50 ms, and 8 Mbit/s each way; down is much like up. All could be far off.
PRIOR: Vector = (0.05, 1e-6, 1e-6)
_PRIOR_SPREAD: Vector = (0.2, 2e-5, 2e-5)
_UNLIKE = 4e-6  # how far, in seconds per byte, down may be from up
LEAST: Vector = (1e-5, 1e-11, 1e-11)
_INDICES = range(3)


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line: `at` are its parameters (seconds, seconds per byte up, seconds per byte down)."""

    at: Vector
    covariance: tuple[Vector, Vector, Vector]

    def seconds(self, up: float, down: float) -> float:
        """The time that so many bytes take."""
        return self.at[0] + self.at[1] * up + self.at[2] * down

    def deviation(self, up: float, down: float) -> float:
        """One standard deviation, in seconds, of what `seconds` may be wrong by, noise not counted."""
        x = (1.0, up, down)
        square = sum(x[i] * x[j] * self.covariance[i][j] for i in _INDICES for j in _INDICES)
        return float(max(square, 0.0) ** 0.5)


_LEAST_PIVOT = min(spread**-2 for spread in _PRIOR_SPREAD)


class Regression:
    """What is remembered of the transfers so far."""

    def __init__(self) -> None:
        self._prior = PRIOR
        self._weights = [[0.0] * 3 for _ in _INDICES]
        self._sums = [0.0] * 3
        self._line: Line | None = None

    def add(self, up: float, down: float, seconds: float, deviation: float) -> None:
        """One transfer; `deviation` is what its `seconds` may be off by."""
        x, weight = (1.0, up, down), 1 / max(deviation, 1e-6) ** 2
        for i in _INDICES:
            for j in _INDICES:
                self._weights[i][j] += weight * x[i] * x[j]
            self._sums[i] += weight * x[i] * seconds
        self._line = None

    def forget(self, kept: float) -> None:
        """Keep the share `kept`, 0 to 1, of what is known."""
        self._weights = [[value * kept for value in row] for row in self._weights]
        self._sums = [value * kept for value in self._sums]
        self._line = None

    def restart(self) -> None:
        """Forget all transfers; the line that they gave is a first guess at what comes, and no more."""
        self._prior = self.line().at
        self.forget(0.0)

    def line(self) -> Line:
        """The line that fits best."""
        if self._line is None:
            self._line = self._fit()
        return self._line

    def _fit(self) -> Line:
        weights = [row[:] for row in self._weights]
        sums = self._sums[:]
        for i, (mean, spread) in enumerate(zip(self._prior, _PRIOR_SPREAD, strict=True)):
            weights[i][i] += spread**-2
            sums[i] += spread**-2 * mean
        for i, j, sign in ((1, 1, 1), (2, 2, 1), (1, 2, -1), (2, 1, -1)):
            weights[i][j] += sign * _UNLIKE**-2
        inverse = _inverse(weights)
        free = [0, 1, 2]
        while True:
            values = _solve(weights, sums, free)
            worst = min(free, key=lambda i: values[i] / LEAST[i], default=None)
            if worst is None or values[worst] >= LEAST[worst]:
                return Line((values[0], values[1], values[2]), inverse)
            free.remove(worst)


def _solve(weights: list[list[float]], sums: list[float], free: list[int]) -> list[float]:
    """The minimum over the parameters in `free`; the others are at their least."""
    size = len(free)
    held = [i for i in _INDICES if i not in free]
    rows = [
        [weights[i][j] for j in free] + [sums[i] - sum(weights[i][j] * LEAST[j] for j in held)] for i in free
    ]
    _eliminate(rows)
    values = list(LEAST)
    for place in range(size):
        values[free[place]] = rows[place][size]
    return values


def _inverse(weights: list[list[float]]) -> tuple[Vector, Vector, Vector]:
    rows = [[*weights[i], *(float(i == j) for j in _INDICES)] for i in _INDICES]
    _eliminate(rows)
    first, second, third = ((row[3], row[4], row[5]) for row in rows)
    return first, second, third


def _eliminate(rows: list[list[float]]) -> None:
    """Gauss and Jordan, in place. No pivot is less than the prior's least weight: pivots are Schur
    complements of a matrix that holds it. What is left of large weights may be rounded to less, or to 0."""
    for pivot, row in enumerate(rows):
        scale = max(row[pivot], _LEAST_PIVOT)
        row[:] = [value / scale for value in row]
        for other, target in enumerate(rows):
            if other != pivot and target[pivot]:
                factor = target[pivot]
                target[:] = [a - factor * b for a, b in zip(target, row, strict=True)]
