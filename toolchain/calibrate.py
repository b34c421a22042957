"""Turning an edge model's logits into a confidence, and choosing from where on it is trusted."""

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from inference_core.confidence import Floats, Scorer, score, softmax
from inference_core.errors import InvalidInput
from inference_core.manifest import Calibration, CurvePoint

Logits = NDArray[np.float32]
Classes = NDArray[np.int64]

CURVE_POINTS = 50
_log = logging.getLogger(__name__)
_LOG_RANGE = (math.log(0.02), math.log(50.0))  # of the temperature


@dataclass(frozen=True)
class Target:
    """What the pair is to reach on the calibration part.

    Its accuracy may lie at most `gap - margin` below that of the full model; `margin` allows for the
    threshold having been chosen on these very samples. At most the share `cap` may be escalated.
    """

    gap: float = 0.005
    margin: float = 0.001
    cap: float = 0.30


def calibrate(
    edge: Logits,
    full: Logits,
    classes: Classes,
    target: Target | None = None,
    scorer: Scorer = Scorer.MAX_PROBABILITY,
) -> Calibration:
    """The temperature, the threshold and the whole curve, from held-out logits of both models.

    `edge` and `full` are `[n, classes]`, `classes` `[n]`. The threshold escalates as little as reaches
    `target`; where no threshold does within its cap, it is the most accurate one within the cap.
    Confidence at or above the threshold is trusted. Raises `InvalidInput` for arrays that do not fit
    together, for no samples, and for logits that are not finite.
    """
    if not (len(classes) and edge.shape == full.shape and len(edge) == len(classes)):
        raise InvalidInput(
            f"logits {list(edge.shape)} and {list(full.shape)} do not fit {len(classes)} classes"
        )
    temperature = fit_temperature(edge, classes)
    sweep = _sweep(edge, full, classes, temperature, scorer)
    return Calibration(
        scorer=scorer,
        temperature=temperature,
        threshold=float(sweep.thresholds[_choose(sweep, full, classes, target or Target())]),
        samples=len(classes),
        curve=sweep.curve(),
    )


def fit_temperature(logits: Logits, classes: Classes) -> float:
    """The temperature under which `logits` `[n, k]` give `classes` `[n]` the lowest negative log likelihood.

    Found over its logarithm, between 0.02 and 50, by Brent's bounded method.
    """

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits, math.exp(log_temperature))
        chosen = probabilities[np.arange(len(classes)), classes]
        return -float(np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())

    found = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-8})
    return round(math.exp(found.x), 6)


@dataclass(frozen=True)
class _Sweep:
    """What happens at every threshold that makes a difference, from nothing escalated upwards.

    All arrays are `[m]`: thresholds rise, `escalated` and `accuracy` are shares of the samples.
    """

    thresholds: Floats
    escalated: Floats
    accuracy: Floats

    def curve(self) -> tuple[CurvePoint, ...]:
        """About `CURVE_POINTS` of its points, evenly spread over the escalated share."""
        wanted = np.linspace(0, self.escalated[-1], CURVE_POINTS)
        chosen = np.unique(np.searchsorted(self.escalated, wanted - 1e-12))
        return tuple(
            CurvePoint(
                threshold=float(self.thresholds[at]),
                escalated=float(self.escalated[at]),
                accuracy=float(self.accuracy[at]),
            )
            for at in chosen
        )


def _sweep(edge: Logits, full: Logits, classes: Classes, temperature: float, scorer: Scorer) -> _Sweep:
    confidence = score(softmax(edge, temperature), scorer)
    order = np.argsort(confidence, kind="stable")
    ranked = confidence[order]
    edge_right = (edge.argmax(axis=1) == classes)[order]
    full_right = (full.argmax(axis=1) == classes)[order]
    # With the k least confident samples escalated, the full model answers those and the edge the rest.
    right = np.concatenate([[0], np.cumsum(full_right)]) + np.concatenate(
        [np.cumsum(edge_right[::-1])[::-1], [0]]
    )
    # Between two equal confidences there is no threshold; halfway between different ones there is.
    steps = np.flatnonzero(ranked[1:] > ranked[:-1]) + 1
    thresholds = (ranked[steps] + ranked[steps - 1]) / 2
    return _Sweep(
        thresholds=np.concatenate([[0.0], thresholds]),
        escalated=np.concatenate([[0.0], steps / len(ranked)]),
        accuracy=right[np.concatenate([[0], steps])] / len(ranked),
    )


def _choose(sweep: _Sweep, full: Logits, classes: Classes, target: Target) -> int:
    allowed = sweep.escalated <= target.cap
    wanted = float((full.argmax(axis=1) == classes).mean()) - target.gap + target.margin
    reaching = np.flatnonzero(allowed & (sweep.accuracy >= wanted))
    if len(reaching):
        return int(reaching[0])
    best = int(np.argmax(np.where(allowed, sweep.accuracy, -1.0)))
    _log.warning(
        "no threshold reaches an accuracy of %.4f while escalating at most %.0f %%; the best reaches %.4f",
        wanted, 100 * target.cap, sweep.accuracy[best],
    )  # fmt: skip
    return best
