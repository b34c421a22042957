"""Certificates: a threshold at which a bound holds with a stated confidence.

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test: Calibrating Predictive
Algorithms to Achieve Risk Control", 2021, arXiv 2110.01052) with fixed-sequence testing. For a threshold t
that was fixed beforehand, the number K of bad events among n independent certification samples is
Binomial(n, R(t)), where R(t) is the true risk. So under the hypothesis "R(t) is above the bound"

    p(t) = P[Binomial(n, bound) <= K]

is at most delta = 1 - confidence with a probability of at most delta. The hypotheses are tested in an order
that was fixed beforehand, too, from the safest threshold on, each at the full delta, and testing ends at the
first p(t) above delta. The last threshold passed is certified: the probability that its true risk is above
the bound is at most delta, over the draw of the certification samples.

That holds only while three things do. The certification samples have chosen nothing else: neither a model,
nor the temperature, the scorer or the candidates. They are drawn independently from what the pair will meet:
**drift voids the certificate**. And bound and confidence are decided before looking: a bound that was picked
after a refusal wants fresh samples.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from inference_core.confidence import Floats
from inference_core.errors import InvalidInput
from toolchain.calibrate import Counts, Flags, spread_thresholds

METHOD = "Learn then Test, fixed sequence, exact binomial tail"
GAP = "share of samples that the edge answers wrongly and the full model would answer rightly"
ESCALATION = "share of samples that are escalated"
CANDIDATES = 200
USEFUL_SHARE = 0.10  # of the samples answered by the edge, for the advice in a refusal


@dataclass(frozen=True)
class Certified:
    """With `confidence`, what `bounds` says is at most `bound` at `threshold`, shown by `samples` samples.

    `observed` and `escalated` are what happened on those samples at the threshold: the share that the edge
    answered although they are losses, and the share escalated.
    """

    bounds: str
    bound: float
    confidence: float
    samples: int
    method: str
    threshold: float
    observed: float
    escalated: float


def candidates(confidence: Floats, count: int = CANDIDATES) -> Floats:
    """At most `count` thresholds to certify, falling, from the `confidence` `[n]` of the calibration part.

    All differ; they are spread evenly over the share escalated, from the largest that makes a difference
    down to 0, where the edge answers everything. They must be made from other samples than those that
    certify. Raises `InvalidInput` for no samples, for confidences outside [0, 1], and for a count below 2.
    """
    thresholds, _ = spread_thresholds(confidence, count)
    return thresholds[::-1].copy()


def smallest_gap(samples: int, level: float) -> float:
    """The smallest bound that `samples` can certify at confidence `level`, when no bad event is among them.

    Solves `(1 - bound) ** samples = 1 - level`: the exact form of the "rule of three".
    """
    return -math.expm1(math.log1p(-level) / samples)


def samples_needed(bound: float, level: float) -> int:
    """How many samples it takes at least to certify `bound` at confidence `level`; see `smallest_gap`."""
    return math.ceil(math.log1p(-level) / math.log1p(-bound))


def certifiable_risk(bound: float, samples: int, level: float) -> float:
    """The largest risk that may be seen on `samples` samples for `bound` to hold at confidence `level`.

    Zero where even none is too much.
    """
    events = np.arange(samples + 1)
    return max(0, int((binom.cdf(events, samples, bound) <= 1 - level).sum()) - 1) / samples


def certify_gap(confidence: Floats, loss: Flags, thresholds: Floats, gap: float, level: float) -> Certified:
    """The smallest of `thresholds` shown to keep P(the edge answers, is wrong, the full is right) <= `gap`.

    That bounds how far the pair's accuracy lies below the full model's. `confidence` and `loss` are `[n]`,
    of the certification part; `thresholds` are falling and come from other samples (see `candidates`);
    `level` is the confidence of the certificate, 1 - delta. Tested from the highest threshold downwards, as
    the module says: i.i.d. samples are assumed, and drift voids the certificate.

    Raises `InvalidInput` when no threshold passes at which the edge answers any of the samples, saying what
    could be certified, and for arguments that do not fit.
    """
    _check(confidence, loss, thresholds, "gap", gap, level)
    samples = len(confidence)
    answered, lost = _reaching(confidence, thresholds), _reaching(confidence[loss], thresholds)
    last = _passed(lost, samples, gap, level) - 1
    if last < 0 or not answered[last]:
        raise InvalidInput(_refused_gap(answered, lost, samples, gap, level))
    return Certified(
        bounds=GAP,
        bound=gap,
        confidence=level,
        samples=samples,
        method=METHOD,
        threshold=float(thresholds[last]),
        observed=float(lost[last] / samples),
        escalated=float(1 - answered[last] / samples),
    )


def certify_escalation(
    confidence: Floats, loss: Flags, thresholds: Floats, budget: float, level: float
) -> Certified:
    """The largest of `thresholds` shown to keep P(escalated) <= `budget`: the most careful one within it.

    Arguments are those of `certify_gap`. Tested from the lowest threshold upwards, as the module says:
    i.i.d. samples are assumed, and drift voids the certificate.

    Raises `InvalidInput` when no threshold passes at which any of the samples is escalated, saying what
    could be certified, and for arguments that do not fit.
    """
    _check(confidence, loss, thresholds, "budget", budget, level)
    samples = len(confidence)
    rising = thresholds[::-1]
    escalated = samples - _reaching(confidence, rising)
    last = _passed(escalated, samples, budget, level) - 1
    if last < 0 or not escalated[last]:
        raise InvalidInput(_refused_budget(escalated, samples, budget, level))
    return Certified(
        bounds=ESCALATION,
        bound=budget,
        confidence=level,
        samples=samples,
        method=METHOD,
        threshold=float(rising[last]),
        observed=float((loss & (confidence >= rising[last])).mean()),
        escalated=float(escalated[last] / samples),
    )


def _reaching(confidence: Floats, thresholds: Floats) -> Counts:
    """How many of `confidence` are at or above each of `thresholds`: those that the edge answers."""
    result: Counts = len(confidence) - np.searchsorted(np.sort(confidence), thresholds, side="left")
    return result


def _passed(events: Counts, samples: int, bound: float, level: float) -> int:
    """How many hypotheses of the sequence are rejected, one after the other, before the first that is not."""
    passes = binom.cdf(events, samples, bound) <= 1 - level
    return len(passes) if passes.all() else int(np.argmin(passes))


def _upper_bound(events: int, samples: int, level: float) -> float:
    """The smallest bound that passes with so many `events`: Clopper and Pearson's, 1934."""
    return float(beta.ppf(level, events + 1, samples - events)) if events < samples else 1.0


def _refused_gap(answered: Counts, lost: Counts, samples: int, gap: float, level: float) -> str:
    none = f"no threshold passes at which the edge answers any of the {samples} samples"
    text = f"a gap of {gap:g} cannot be certified at confidence {level:g}: "
    text += _too_few(samples, gap, level) or none
    useful = np.flatnonzero(answered >= USEFUL_SHARE * samples)
    at = int(useful[0]) if len(useful) else len(answered) - 1
    wanted = _rounded_up(_upper_bound(int(lost[at]), samples, level))
    if answered[at] and wanted < 1:
        share = answered[at] / samples
        text += f"; with a gap of {wanted:.3g} the edge would answer {share:.0%} of these samples"
    return text


def _refused_budget(escalated: Counts, samples: int, budget: float, level: float) -> str:
    none = f"no threshold passes at which any of the {samples} samples is escalated"
    text = f"a budget of {budget:g} cannot be certified at confidence {level:g}: "
    text += _too_few(samples, budget, level) or none
    fewest = int(escalated[escalated > 0].min(initial=samples))
    wanted = _rounded_up(_upper_bound(fewest, samples, level))
    if wanted < 1:
        share = fewest / samples
        text += f"; with a budget of {wanted:.3g} the pair would escalate {share:.1%} of these samples"
    return text


def _too_few(samples: int, bound: float, level: float) -> str:
    """Why so few samples cannot certify `bound` whatever they show; empty if they can."""
    needed = samples_needed(bound, level)
    if samples >= needed:
        return ""
    best = _rounded_up(smallest_gap(samples, level))
    return f"that takes at least {needed} samples, and {samples} certify {best:.3g} at best"


def _rounded_up(value: float) -> float:
    """`value` to three digits, never below it."""
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


def _check(
    confidence: Floats, loss: Flags, thresholds: Floats, name: str, bound: float, level: float
) -> None:
    if confidence.ndim != 1 or confidence.shape != loss.shape or loss.dtype != np.bool_:
        raise InvalidInput(f"confidences {list(confidence.shape)} do not fit losses {list(loss.shape)}")
    if not len(confidence):
        raise InvalidInput("there are no samples to certify with")
    if thresholds.ndim != 1 or not len(thresholds) or not (np.diff(thresholds) < 0).all():
        raise InvalidInput("the thresholds to certify must be one falling row")
    for what, values in (("confidences", confidence), ("thresholds", thresholds)):
        if not ((values >= 0) & (values <= 1)).all():
            raise InvalidInput(f"{what} must lie between 0 and 1")
    for what, value in ((name, bound), ("confidence", level)):
        if not 0 < value < 1:
            raise InvalidInput(f"the {what} to certify must lie between 0 and 1, got {value:g}")
