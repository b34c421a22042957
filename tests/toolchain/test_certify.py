"""Certificates: exact binomial values, refusals, and that the bound holds as often as promised."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

from inference_core.errors import InvalidInput
from toolchain.certify import (
    ESCALATION,
    GAP,
    METHOD,
    Certified,
    candidates,
    certify_escalation,
    certify_gap,
    samples_needed,
    smallest_gap,
)

Part = tuple[Any, Any]
Certify = Callable[[Any, Any, Any, float, float], Certified]

STEEPNESS = 0.1  # of the made-up population


def _draw(rng: np.random.Generator, count: int) -> Part:
    """Confidences, uniform in [0, 1], and losses, each with the chance `STEEPNESS * (1 - confidence)`."""
    confidence = rng.random(count)
    return confidence, rng.random(count) < STEEPNESS * (1 - confidence)


def _true_risk(threshold: Any) -> Any:
    """What the edge loses of that population: the integral of the chance above the threshold."""
    return STEEPNESS * (1 - threshold) ** 2 / 2


def _tail(events: int, samples: int, chance: float) -> float:
    """P[Binomial(samples, chance) <= events], summed term by term."""
    return math.fsum(
        math.comb(samples, at) * chance**at * (1 - chance) ** (samples - at) for at in range(events + 1)
    )


@st.composite
def _any_part(draw: st.DrawFn) -> Part:
    count = draw(st.integers(20, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    confidence = rng.integers(0, draw(st.integers(1, 40)) + 1, count) / 40
    return confidence, rng.random(count) < draw(st.sampled_from([0.0, 0.05, 0.3])) * (1 - confidence)


# ---- exact values


@pytest.mark.parametrize("events", [0, 1, 4])
@pytest.mark.parametrize("samples", [60, 100])
def test_the_gap_that_is_certified_is_the_exact_binomial_one(events: int, samples: int) -> None:
    confidence, loss = np.full(samples, 0.8), np.arange(samples) < events
    low, high = 0.0, 0.5
    for _ in range(60):  # the smallest gap of which the tail is at most 5 %, by bisection
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(events, samples, middle) > 0.05 else (low, middle)
    thresholds = np.array([0.9, 0.5, 0.0])
    found = certify_gap(confidence, loss, thresholds, high + 1e-9, 0.95)
    assert (found.threshold, found.escalated, found.observed) == (0.0, 0.0, events / samples)
    with pytest.raises(InvalidInput):
        certify_gap(confidence, loss, thresholds, high - 1e-9, 0.95)


def test_every_value_of_a_certificate() -> None:
    # 100 samples at 0.9 without a loss, 100 at 0.5 with four: a gap of 0.04 lies between.
    confidence = np.repeat([0.9, 0.5], 100)
    loss = np.zeros(200, bool)
    loss[100:104] = True
    assert _tail(0, 200, 0.04) < 0.05 < _tail(4, 200, 0.04)
    found = certify_gap(confidence, loss, np.array([1.0, 0.7, 0.3, 0.0]), 0.04, 0.95)
    assert found == Certified(GAP, 0.04, 0.95, 200, METHOD, 0.7, 0.0, 0.5)
    found = certify_gap(confidence, loss, np.array([1.0, 0.7, 0.3, 0.0]), 0.06, 0.95)
    assert found == Certified(GAP, 0.06, 0.95, 200, METHOD, 0.0, 0.02, 0.0)
    assert _tail(100, 200, 0.57) < 0.05 < _tail(100, 200, 0.55)
    found = certify_escalation(confidence, loss, np.array([1.0, 0.7, 0.3, 0.0]), 0.57, 0.95)
    assert found == Certified(ESCALATION, 0.57, 0.95, 200, METHOD, 0.7, 0.0, 0.5)
    with pytest.raises(InvalidInput):
        certify_escalation(confidence, loss, np.array([1.0, 0.7, 0.3, 0.0]), 0.55, 0.95)


def test_testing_ends_at_the_first_that_fails() -> None:
    """No threshold behind a failure is certified, as the sequence demands."""
    rng = np.random.default_rng(1)
    confidence, loss = _draw(rng, 3000)
    thresholds = candidates(rng.random(2000))
    found = certify_gap(confidence, loss, thresholds, 0.02, 0.9)
    passed = [
        float(binom.cdf((loss & (confidence >= threshold)).sum(), 3000, 0.02)) <= 0.1
        for threshold in thresholds
    ]
    last = thresholds.tolist().index(found.threshold)
    assert all(passed[: last + 1])
    assert not passed[last + 1]


@pytest.mark.parametrize(("bound", "level", "needed"), [(0.01, 0.95, 299), (0.005, 0.95, 598), (0.5, 0.5, 1)])
def test_how_many_samples_it_takes(bound: float, level: float, needed: int) -> None:
    assert samples_needed(bound, level) == needed
    assert smallest_gap(needed, level) <= bound
    if needed > 1:
        assert smallest_gap(needed - 1, level) > bound
    assert smallest_gap(needed, level) == pytest.approx(1 - (1 - level) ** (1 / needed))
    sure, lossless = np.full(needed, 0.9), np.zeros(needed, bool)
    assert certify_gap(sure, lossless, np.array([0.5, 0.0]), bound, level).escalated == 0
    with pytest.raises(InvalidInput):
        certify_gap(sure[1:], lossless[1:], np.array([0.5, 0.0]), bound, level)


def test_the_rule_of_three() -> None:
    assert smallest_gap(5000, 0.95) == pytest.approx(3 / 5000, rel=0.01)


# ---- candidates


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(2, 60))
def test_candidates_fall_to_zero(values: list[float], count: int) -> None:
    confidence = np.array(values)
    found = candidates(confidence, count)
    assert 1 <= len(found) <= count
    assert found[-1] == 0
    assert (np.diff(found) < 0).all()
    assert found[0] <= 1
    assert (confidence < found[0]).sum() == (confidence < 1).sum()


def test_candidates_are_spread_over_the_share_escalated() -> None:
    found = candidates(np.random.default_rng(0).random(1990) ** 0.01)
    assert len(found) == 200
    assert (found**100)[::-1] == pytest.approx(np.linspace(0, 1, 200), abs=0.03)


# ---- properties


@given(_any_part(), st.floats(0.03, 0.6), st.floats(0.5, 0.99), st.integers(0, 2**32 - 1))
def test_a_certificate_says_what_its_samples_show(part: Part, bound: float, level: float, seed: int) -> None:
    confidence, loss = part
    thresholds = candidates(np.random.default_rng(0).random(50))
    order = np.random.default_rng(seed).permutation(len(loss))
    for certify in (certify_gap, certify_escalation):
        try:
            found = certify(confidence, loss, thresholds, bound, level)
        except InvalidInput:
            with pytest.raises(InvalidInput):
                certify(confidence[order], loss[order], thresholds, bound, level)
            continue
        assert found == certify(confidence[order], loss[order], thresholds, bound, level)
        assert found.threshold in thresholds
        assert found.escalated == pytest.approx((confidence < found.threshold).mean())
        assert found.observed == pytest.approx((loss & (confidence >= found.threshold)).mean())
        shown = found.observed if certify is certify_gap else found.escalated
        assert shown < bound
        assert (found.samples, found.bound, found.confidence) == (len(loss), bound, level)


@given(_any_part(), st.floats(0.03, 0.5), st.floats(0.5, 0.95))
def test_asking_for_less_escalates_less(part: Part, bound: float, level: float) -> None:
    confidence, loss = part
    thresholds = candidates(np.linspace(0, 1, 60))

    def threshold(certify: Certify, *terms: float) -> float | None:
        try:
            return certify(confidence, loss, thresholds, terms[0], terms[1]).threshold
        except InvalidInput:
            return None

    for certify, sign in ((certify_gap, 1), (certify_escalation, -1)):
        strict = threshold(certify, bound, level)
        if strict is None:
            continue
        for looser in (threshold(certify, bound * 1.5, level), threshold(certify, bound, level - 0.3)):
            assert looser is not None
            assert sign * (strict - looser) >= 0


@given(_any_part(), st.floats(0.05, 0.5))
def test_a_further_loss_never_lowers_the_threshold(part: Part, gap: float) -> None:
    confidence, loss = part
    thresholds = candidates(np.linspace(0, 1, 60))
    assume(not loss.all())
    more = loss.copy()
    more[np.argmin(loss)] = True
    try:
        worse = certify_gap(confidence, more, thresholds, gap, 0.8)
    except InvalidInput:
        return
    assert certify_gap(confidence, loss, thresholds, gap, 0.8).threshold <= worse.threshold


# ---- refusals


def test_too_few_samples_are_told_how_many_it_takes() -> None:
    confidence, loss = np.linspace(0, 0.99, 200), np.zeros(200, bool)
    thresholds = candidates(confidence)
    with pytest.raises(InvalidInput) as refused:
        certify_gap(confidence, loss, thresholds, 0.01, 0.95)
    assert str(refused.value) == (
        "a gap of 0.01 cannot be certified at confidence 0.95: that takes at least 299 samples, and 200 "
        "certify 0.0149 at best; with a gap of 0.0149 the edge would answer 10% of these samples"
    )
    assert certify_gap(confidence, loss, thresholds, 0.0149, 0.95).threshold == 0
    with pytest.raises(InvalidInput, match=r"a budget of 0\.01 .* 299 samples, and 200 certify 0\.0149"):
        certify_escalation(confidence, loss, thresholds, 0.01, 0.95)


def test_an_edge_that_may_answer_nothing_is_told_when_it_might() -> None:
    # Half of what the edge would answer is lost, wherever the threshold lies.
    confidence, loss = np.repeat(np.linspace(0, 0.99, 500), 2), np.arange(1000) % 2 == 0
    thresholds = candidates(confidence, 51)
    with pytest.raises(InvalidInput) as refused:
        certify_gap(confidence, loss, thresholds, 0.005, 0.95)
    text = str(refused.value)
    assert "no threshold passes at which the edge answers any of the 1000 samples" in text
    match = re.search(r"with a gap of (\S+) the edge would answer 10% of these samples$", text)
    assert match
    found = certify_gap(confidence, loss, thresholds, float(match[1]), 0.95)
    assert found.escalated == pytest.approx(0.9)
    assert found.observed == pytest.approx(0.05)
    with pytest.raises(InvalidInput, match="cannot be certified") as refused:
        certify_gap(confidence, np.ones(1000, bool), np.array([0.0]), 0.005, 0.95)
    assert "with a gap" not in str(refused.value), "no gap below 1 would do"


def test_a_budget_that_nothing_fits_into_is_told_what_would() -> None:
    confidence, loss = np.repeat([0.2, 0.8], [100, 900]), np.zeros(1000, bool)
    thresholds = candidates(confidence)
    with pytest.raises(InvalidInput) as refused:
        certify_escalation(confidence, loss, thresholds, 0.05, 0.95)
    text = str(refused.value)
    assert "no threshold passes at which any of the 1000 samples is escalated" in text
    match = re.search(r"with a budget of (\S+) the pair would escalate 10\.0% of these samples$", text)
    assert match
    assert certify_escalation(confidence, loss, thresholds, float(match[1]), 0.95).escalated == 0.1
    with pytest.raises(InvalidInput, match=r"any of the 1000 samples is escalated$"):
        certify_escalation(np.ones(1000), loss, np.array([0.5, 0.0]), 0.05, 0.95)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_bounds_and_confidences_outside_their_range_are_refused(value: float) -> None:
    confidence, loss, thresholds = np.full(10, 0.5), np.zeros(10, bool), np.array([0.5, 0.0])
    with pytest.raises(InvalidInput, match="the gap to certify must lie between 0 and 1"):
        certify_gap(confidence, loss, thresholds, value, 0.5)
    with pytest.raises(InvalidInput, match="the budget to certify must lie between 0 and 1"):
        certify_escalation(confidence, loss, thresholds, value, 0.5)
    for certify in (certify_gap, certify_escalation):
        with pytest.raises(InvalidInput, match="the confidence to certify must lie between 0 and 1"):
            certify(confidence, loss, thresholds, 0.5, value)


@pytest.mark.parametrize(
    ("confidence", "loss", "thresholds", "what"),
    [
        ([0.5], [False, True], [0.0], r"confidences \[1\] do not fit losses \[2\]"),
        ([0.5], [1], [0.0], "do not fit losses"),
        ([], np.empty(0, bool), [0.0], "no samples to certify with"),
        ([0.5], [True], [], "one falling row"),
        ([0.5], [True], [0.0, 0.5], "one falling row"),
        ([0.5], [True], [0.5, 0.5], "one falling row"),
        ([0.5], [True], [math.nan], "thresholds must lie between 0 and 1"),
        ([0.5], [True], [1.5, 0.0], "thresholds must lie between 0 and 1"),
        ([math.nan], [True], [0.0], "confidences must lie between 0 and 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(confidence: Any, loss: Any, thresholds: Any, what: str) -> None:
    arrays = np.array(confidence, float), np.array(loss), np.array(thresholds, float)
    for certify in (certify_gap, certify_escalation):
        with pytest.raises(InvalidInput, match=what):
            certify(*arrays, 0.5, 0.5)


# ---- the promise

DRAWS = 1000
# A procedure that breaks its bound in exactly `delta` of the cases is above this in one run of 10,000.
CHANCE = 1e-4


def _at_most(delta: float) -> float:
    return float(binom.ppf(1 - CHANCE, DRAWS, delta)) / DRAWS


def _certify_often(
    certify: Certify, bound: float, level: float, samples: int, steps: int | None = None
) -> tuple[Any, Any]:
    """The candidates, and the thresholds certified on `DRAWS` parts of the population of `_draw`.

    With `steps` all confidences are rounded down to that many values, so that most of them are tied.
    """
    rng = np.random.default_rng(7)

    def coarse(confidence: Any) -> Any:
        return confidence if steps is None else np.floor(confidence * steps) / steps

    thresholds = candidates(coarse(rng.random(2000)))
    certified = []
    for _ in range(DRAWS):
        confidence, loss = _draw(rng, samples)
        certified.append(certify(coarse(confidence), loss, thresholds, bound, level).threshold)
    # Between two steps a threshold does what the next step above it does.
    exact = certified if steps is None else np.ceil(np.array(certified) * steps) / steps
    return thresholds, np.array(exact)


@pytest.mark.parametrize(("gap", "level", "steps"), [(0.01, 0.95, None), (0.02, 0.9, None), (0.02, 0.9, 20)])
def test_the_gap_is_broken_no_more_often_than_promised(gap: float, level: float, steps: int | None) -> None:
    thresholds, certified = _certify_often(certify_gap, gap, level, 1500, steps)
    broken = float((_true_risk(certified) > gap).mean())
    assert broken <= _at_most(1 - level)
    # It is not won by caution: the edge answers a good part of what it could with hindsight.
    hindsight = 1 - math.sqrt(2 * gap / STEEPNESS)
    assert np.median(certified) < hindsight + 0.12 + (1 / steps if steps else 0)
    if steps is None:
        # Nor by luck: the bound breaks as often as the first candidate whose risk is too high passes.
        first = _true_risk(thresholds[_true_risk(thresholds) > gap][0])
        most = binom.ppf(1 - level, 1500, gap) - 1
        assert binom.cdf(most, 1500, gap) <= 1 - level < binom.cdf(most + 1, 1500, gap)
        expected = float(binom.cdf(most, 1500, first))
        low, high = binom.ppf([CHANCE, 1 - CHANCE], DRAWS, expected) / DRAWS
        assert low <= broken <= high


@pytest.mark.parametrize(("budget", "steps"), [(0.3, None), (0.3, 20)])
def test_the_budget_is_broken_no_more_often_than_promised(budget: float, steps: int | None) -> None:
    _, certified = _certify_often(certify_escalation, budget, 0.9, 1500, steps)
    assert float((certified > budget + 1e-12).mean()) <= _at_most(0.1)  # the share escalated is the threshold
    assert np.median(certified) > budget - 0.06


def test_a_threshold_that_only_fits_its_samples_would_be_caught() -> None:
    """The same trial tells a choice without a certificate: it breaks the bound about every other time."""

    def fitted(confidence: Any, loss: Any, thresholds: Any, gap: float, level: float) -> Certified:
        lost = [(loss & (confidence >= threshold)).mean() for threshold in thresholds[::5]]
        at = thresholds[::5][np.flatnonzero(np.array(lost) <= gap)[-1]]
        return Certified(GAP, gap, level, len(loss), "none", float(at), 0.0, 0.0)

    _, chosen = _certify_often(fitted, 0.02, 0.9, 1500)
    assert float((_true_risk(chosen) > 0.02).mean()) > 0.25 > _at_most(0.1)
