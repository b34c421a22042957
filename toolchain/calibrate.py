"""From both models' logits on held-out samples: the temperature, the scorer, and what each threshold does.

The pair answers a sample with the edge's class when the edge's confidence is at or above the threshold, and
with the full model's class otherwise. A sample is a *loss* when the edge is wrong on it and the full model
is right: what the threshold is there to prevent. Logits are float32 `[n, k]`, classes int64 `[n]`: the true
ones or, where the data has none, those that the full model names, which then counts as always right.
Which threshold to use is for `certify` to say.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from inference_core.confidence import Floats, Scorer, score, softmax
from inference_core.errors import InvalidInput

Logits = NDArray[np.float32]
Classes = NDArray[np.int64]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

CURVE_POINTS = 50
ECE_BINS = 15
_LOG_RANGE = (math.log(0.02), math.log(50.0))  # of the temperature
_EQUAL_DIGITS = 12  # scorers whose figures agree to so many decimals are equally good


@dataclass(frozen=True)
class ScorerFigures:
    """How well `scorer` ranks the samples: `aurc` as of `aurc()`, less is better."""

    scorer: Scorer
    aurc: float


@dataclass(frozen=True)
class Calibrated:
    """How the edge's logits become a confidence.

    `scorers` compares all of them at `temperature`; `ece_before` and `ece` are the expected calibration
    errors of the largest probability at temperature 1 and at `temperature`, both on the `samples` samples
    that set it.
    """

    scorer: Scorer
    temperature: float
    scorers: tuple[ScorerFigures, ...]
    ece: float
    ece_before: float
    samples: int


@dataclass(frozen=True)
class CurveRow:
    """What the pair does at `threshold`; the rest are shares of all samples.

    `escalated` go to the full model; on `accuracy` the pair is right; on `agreement` it names the full
    model's class; on `risk` the edge answers and the sample is a loss.
    """

    threshold: float
    escalated: float
    accuracy: float
    agreement: float
    risk: float


@dataclass(frozen=True)
class Curve:
    """The pair from nothing escalated to everything, and the accuracies that bound it, row by row.

    `random` is expected when as many samples are escalated at random, `oracle` the best that escalating as
    many can give: losses first, last those on which only the edge is right.
    """

    rows: tuple[CurveRow, ...]
    random: tuple[float, ...]
    oracle: tuple[float, ...]


def calibrate(edge: Logits, full: Logits, classes: Classes, scorer: Scorer | None = None) -> Calibrated:
    """The temperature of the edge's logits, and the scorer that ranks losses lowest, or the given `scorer`.

    The lowest AURC wins, the first in the order of `Scorer` among equals. Raises `InvalidInput` for arrays
    that do not fit together, for no samples, and for logits that are not finite.
    """
    lost = losses(edge, full, classes)
    right = edge.argmax(axis=1) == classes
    temperature = fit_temperature(edge, classes)
    probabilities = softmax(edge, temperature)
    figures = tuple(ScorerFigures(each, aurc(score(probabilities, each), lost)) for each in Scorer)
    best = min(figures, key=lambda each: round(each.aurc, _EQUAL_DIGITS))
    return Calibrated(
        scorer=scorer or best.scorer,
        temperature=temperature,
        scorers=figures,
        ece=expected_calibration_error(probabilities.max(axis=1), right),
        ece_before=expected_calibration_error(softmax(edge).max(axis=1), right),
        samples=len(classes),
    )


def fit_temperature(logits: Logits, classes: Classes) -> float:
    """The temperature under which `logits` `[n, k]` give `classes` `[n]` the lowest negative log likelihood.

    Each class counts as right with the chance `(n + 1) / (n + 2)` only, as in Platt, "Probabilistic Outputs
    for Support Vector Machines", 1999: an edge that is right on all samples would get the lowest temperature
    there is, and be certain of everything. Found over its logarithm, between 0.02 and 50, by Brent's
    bounded method.
    """
    count, others = len(classes), max(1, logits.shape[1] - 1)
    doubt = 1 / (count + 2)

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits, math.exp(log_temperature))
        logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        right = logs[np.arange(count), classes]
        wrong = (logs.sum(axis=1) - right) / others
        return -float(((1 - doubt) * right + doubt * wrong).mean())

    found = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-8})
    return round(math.exp(found.x), 6)


def confidences(logits: Logits, temperature: float, scorer: Scorer) -> Floats:
    """The confidence of each row of `logits` `[n, k]`, in [0, 1]; `InvalidInput` unless all are finite."""
    return score(softmax(logits, temperature), scorer)


def losses(edge: Logits, full: Logits, classes: Classes) -> Flags:
    """Where the edge is wrong and the full model right, `[n]`.

    Raises `InvalidInput` for arrays that do not fit together, for no samples, and for logits that are not
    finite.
    """
    _check(edge, full, classes)
    result: Flags = (edge.argmax(axis=1) != classes) & (full.argmax(axis=1) == classes)
    return result


def aurc(confidence: Floats, lost: Flags) -> float:
    """The area under the risk-coverage curve of `confidence` `[n]`: lower when it puts losses `[n]` last.

    The mean, over all coverages i/n, of the share of losses among the i most confident samples (Geifman and
    El-Yaniv, "Selective Classification for Deep Neural Networks", 2017; the area as in Geifman, Uziel and
    El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", 2019). Equal confidences
    are taken as ranked at random, of which this is the exact expectation, so the order of the samples does
    not matter. Raises `InvalidInput` for arrays that do not fit together and for no samples.
    """
    _check_confidence(confidence, len(lost))
    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    rates = np.bincount(group, weights=lost) / sizes
    expected = np.cumsum(np.repeat(rates, sizes))  # losses among the first i
    return float((expected / np.arange(1, len(lost) + 1)).mean())


def expected_calibration_error(probabilities: Floats, right: Flags, bins: int = ECE_BINS) -> float:
    """How far the `probabilities` `[n]` given to the answers are from how often these are `right` `[n]`.

    `sum over bins of |B|/n * |share right in B - mean probability in B|`, for bins of equal width that
    include their upper edge (Guo et al., "On Calibration of Modern Neural Networks", 2017). Raises
    `InvalidInput` for arrays that do not fit together and for no samples.
    """
    _check_confidence(probabilities, len(right))
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    at = np.digitize(probabilities, inner, right=True)
    differences = np.bincount(at, weights=right - probabilities, minlength=bins)
    return float(np.abs(differences).sum() / len(right))


def spread_thresholds(confidence: Floats, count: int) -> tuple[Floats, Counts]:
    """At most `count` thresholds for `confidence` `[n]`, rising, and how many samples each escalates.

    They are spread evenly over the share escalated, the first and the last of all that make a difference
    among them. Those lie halfway between neighbouring confidences, and behind them halfway between the
    highest confidence and 1: there everything is escalated. The first is 0, where nothing is. Samples whose
    confidence is exactly 1 cannot be escalated. Raises `InvalidInput` for confidences that are not `[n]`
    numbers in [0, 1], and for a count below 2.
    """
    _check_confidence(confidence, len(confidence))
    if count < 2:
        raise InvalidInput(f"the number of thresholds must be at least 2, got {count}")
    ranked = np.append(np.sort(confidence), 1.0)
    steps = np.flatnonzero(ranked[1:] > ranked[:-1]) + 1
    lower, upper = ranked[steps - 1], ranked[steps]
    middle = (lower + upper) / 2
    # Between two neighbouring floats there is no middle; the upper one parts them just as well.
    thresholds = np.concatenate([[0.0], np.where(middle > lower, middle, upper)])
    escalated = np.concatenate([[0], steps])
    wanted = np.linspace(0, escalated[-1], count)
    chosen = np.unique(np.searchsorted(escalated, wanted - 1e-9))
    return thresholds[chosen], escalated[chosen]


def curve(
    confidence: Floats, edge: Logits, full: Logits, classes: Classes, points: int = CURVE_POINTS
) -> Curve:
    """What the pair does at up to `points` thresholds, spread evenly over the share escalated.

    `confidence` `[n]` is the edge's. The first row escalates nothing (threshold 0), the last one all that
    can be (see `spread_thresholds`). Raises `InvalidInput` for arrays that do not fit together, for no
    samples, for numbers that are not finite, and for fewer than 2 points.
    """
    lost = losses(edge, full, classes)
    samples = len(classes)
    _check_confidence(confidence, samples)
    thresholds, escalated = spread_thresholds(confidence, points)
    order = np.argsort(confidence, kind="stable")

    def answered(event: Flags) -> Counts:
        """How many samples the edge answers and `event` `[n]` holds for, at each threshold."""
        below = np.concatenate([[0], np.cumsum(event[order])])
        result: Counts = below[-1] - below[escalated]
        return result

    edge_right, full_right = edge.argmax(axis=1) == classes, full.argmax(axis=1) == classes
    right = answered(edge_right) + full_right.sum() - answered(full_right)
    agreeing = answered(edge.argmax(axis=1) == full.argmax(axis=1)) + escalated
    columns = np.stack([escalated, right, agreeing, answered(lost)]) / samples
    rows = zip(thresholds.tolist(), *columns.tolist(), strict=True)
    random, oracle = _bounds(edge_right, full_right, escalated)
    return Curve(tuple(CurveRow(*row) for row in rows), tuple(random.tolist()), tuple(oracle.tolist()))


def _bounds(edge_right: Flags, full_right: Flags, escalated: Counts) -> tuple[Floats, Floats]:
    """The accuracies with as many escalated as in each entry of `escalated`: at random, and at best."""
    samples = len(edge_right)
    gained = int((full_right & ~edge_right).sum())
    spoilt = int((edge_right & ~full_right).sum())
    random = edge_right.mean() + escalated / samples * (gained - spoilt) / samples
    best = np.minimum(escalated, gained) - np.maximum(0, escalated - (samples - spoilt))
    return random, (edge_right.sum() + best) / samples


def _check(edge: Logits, full: Logits, classes: Classes) -> None:
    if edge.ndim != 2 or edge.shape != full.shape or classes.shape != edge.shape[:1]:
        shapes = f"{list(edge.shape)} and {list(full.shape)}"
        raise InvalidInput(f"logits {shapes} do not fit {classes.size} classes")
    if not edge.size:
        raise InvalidInput("there are no samples to calibrate on")
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= edge.shape[1]:
        raise InvalidInput(f"classes must be whole numbers from 0 to {edge.shape[1] - 1}")
    for name, logits in (("edge", edge), ("full", full)):
        if not np.isfinite(logits).all():
            raise InvalidInput(f"the logits of the {name} model hold a NaN or an infinity")


def _check_confidence(confidence: Floats, samples: int) -> None:
    if confidence.shape != (samples,):
        raise InvalidInput(f"confidences {list(confidence.shape)} do not fit {samples} samples")
    if not samples:
        raise InvalidInput("there are no samples to calibrate on")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InvalidInput("confidences must lie between 0 and 1")
