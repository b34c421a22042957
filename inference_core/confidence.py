"""Confidence maths: from a row of logits to one number that a threshold can be held against.

All functions take finite logits of shape `[classes]` or `[n, classes]` (any float dtype), compute in
float64 and raise `InvalidInput` on a NaN or an infinity, so that no such value ever becomes a
decision. Higher is more confident for every scorer, and all of them lie in [0, 1].
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput

Floats = NDArray[np.float64]


class Scorer(StrEnum):
    """How a probability vector is reduced to one confidence."""

    MAX_PROBABILITY = "max_probability"
    MARGIN = "margin"
    ENTROPY = "entropy"


def softmax(logits: NDArray[np.generic], temperature: float = 1.0) -> Floats:
    """Class probabilities of `logits / temperature` along the last axis.

    Temperature scaling follows Guo et al., "On Calibration of Modern Neural Networks", 2017.
    Raises `InvalidInput` for logits that are not finite and `RuntimeError` for a temperature that is
    not a positive, finite number.
    """
    if not 0 < temperature < math.inf:
        raise RuntimeError(f"temperature must be positive and finite, got {temperature}")
    values = np.asarray(logits, dtype=np.float64)
    # What is too large becomes an infinity: in the sum, that looks closer; behind the shift, where all
    # values are <= 0, one whose exponential is 0 as it should.
    with np.errstate(over="ignore"):
        if not math.isfinite(np.add.reduce(values, axis=None)) and not np.isfinite(values).all():
            raise InvalidInput("the model's output holds a NaN or an infinity")
        shifted: Floats = values - np.maximum.reduce(values, axis=-1, keepdims=True)
        shifted /= temperature
    result = np.exp(shifted, out=shifted)
    result /= np.add.reduce(result, axis=-1, keepdims=True)
    return result


def max_probability(probabilities: Floats) -> Floats:
    """The largest probability; chance level for k classes is 1/k."""
    result: Floats = probabilities.max(axis=-1)
    return result


def margin(probabilities: Floats) -> Floats:
    """The largest probability minus the second largest."""
    if probabilities.shape[-1] < 2:
        return max_probability(probabilities)
    top = np.partition(probabilities, -2, axis=-1)
    result: Floats = top[..., -1] - top[..., -2]
    return result


def negative_entropy(probabilities: Floats) -> Floats:
    """One minus Shannon's entropy over its maximum: 1 for one-hot rows, 0 for uniform ones."""
    classes = probabilities.shape[-1]
    if classes < 2:
        return max_probability(probabilities)
    # A saturated softmax row holds exact zeros; p log p tends to 0 there, log(0) does not.
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    result: Floats = 1.0 + (probabilities * logs).sum(axis=-1) / np.log(classes)
    return np.clip(result, 0.0, 1.0)


_SCORERS: dict[Scorer, Callable[[Floats], Floats]] = {
    Scorer.MAX_PROBABILITY: max_probability,
    Scorer.MARGIN: margin,
    Scorer.ENTROPY: negative_entropy,
}


def score(probabilities: Floats, scorer: Scorer) -> Floats:
    """Confidence of each row of `probabilities`: shape `[n]` for `[n, classes]`."""
    return _SCORERS[scorer](probabilities)


# Up to this many classes, NumPy's calls take longer than the numbers do: plain Python is three times as fast.
_FEW = 64
Row = list[float] | Floats


def judge(logits: NDArray[np.floating[Any]], temperature: float, scorer: Scorer) -> tuple[Row, float]:
    """The calibrated probabilities of one row of logits, shape `[classes]`, and their confidence.

    The same as `softmax` and `score`, to the last bits, and raises the same.
    """
    if logits.size > _FEW:
        probabilities = softmax(logits, temperature)
        return probabilities, float(score(probabilities, scorer))
    if not 0 < temperature < math.inf:
        raise RuntimeError(f"temperature must be positive and finite, got {temperature}")
    values: list[float] = logits.tolist()
    if not all(map(math.isfinite, values)):
        raise InvalidInput("the model's output holds a NaN or an infinity")
    top = max(values)
    exponentials = [math.exp((value - top) / temperature) for value in values]
    total = sum(exponentials)
    row = [exponential / total for exponential in exponentials]
    return row, _ROW_SCORERS[scorer](row)


def _row_margin(row: list[float]) -> float:
    if len(row) < 2:
        return row[0]
    *_, second, first = sorted(row)
    return first - second


def _row_certainty(row: list[float]) -> float:
    if len(row) < 2:
        return row[0]
    entropy = -sum(p * math.log(p) for p in row if p > 0)
    return min(max(1.0 - entropy / math.log(len(row)), 0.0), 1.0)


_ROW_SCORERS: dict[Scorer, Callable[[list[float]], float]] = {
    Scorer.MAX_PROBABILITY: max,
    Scorer.MARGIN: _row_margin,
    Scorer.ENTROPY: _row_certainty,
}
