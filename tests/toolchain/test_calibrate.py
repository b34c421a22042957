"""Temperature and threshold: against what is known of made-up logits, and against brute force."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.confidence import Scorer, score, softmax
from inference_core.errors import InvalidInput
from toolchain.calibrate import CURVE_POINTS, Target, calibrate, fit_temperature
from toolchain.evaluate import cascade

Pair = tuple[Any, Any, Any]


def _pair(count: int = 3000, seed: int = 0, gain: float = 1.0) -> Pair:
    """Logits of an edge model that knows how unsure it is, those of a better one, and the classes."""
    rng = np.random.default_rng(seed)
    edge = rng.normal(0, 2.5, (count, 5))
    chances = softmax(edge).cumsum(axis=1)
    classes = (rng.random((count, 1)) > chances).sum(axis=1).clip(0, 4)
    full = edge + 4 * np.eye(5)[classes] + rng.normal(0, 0.5, edge.shape)
    return (edge * gain).astype(np.float32), full.astype(np.float32), classes


def _accuracy(
    edge: Any, full: Any, classes: Any, threshold: float, temperature: float
) -> tuple[float, float]:
    escalated = score(softmax(edge, temperature), Scorer.MAX_PROBABILITY) < threshold
    answers = np.where(escalated, full.argmax(axis=1), edge.argmax(axis=1))
    return float((answers == classes).mean()), float(escalated.mean())


@pytest.mark.parametrize("gain", [0.2, 1.0, 6.0])
def test_the_temperature_undoes_a_gain(gain: float) -> None:
    edge, _, classes = _pair(20000, gain=gain)
    assert fit_temperature(edge, classes) == pytest.approx(gain, rel=0.03)


def test_no_temperature_nearby_is_likelier() -> None:
    edge, _, classes = _pair(500, seed=3)
    found = fit_temperature(edge, classes)

    def loss(temperature: float) -> float:
        return -float(np.log(softmax(edge, temperature)[np.arange(len(classes)), classes]).mean())

    assert all(loss(found) <= loss(found * factor) for factor in (0.5, 0.95, 0.999, 1.001, 1.05, 2.0))


def test_extreme_logits_give_a_finite_temperature() -> None:
    edge = np.array([[1e30, 0.0], [0.0, 1e30]], np.float32)
    for classes in ([0, 1], [1, 0], [0, 0]):
        assert 0.01 < fit_temperature(edge, np.array(classes)) < 51


def test_the_threshold_is_the_smallest_that_reaches_the_target() -> None:
    edge, full, classes = _pair()
    target = Target(gap=0.01, margin=0.002, cap=0.9)
    found = calibrate(edge, full, classes, target)
    wanted = float((full.argmax(axis=1) == classes).mean()) - 0.008
    reached, escalated = _accuracy(edge, full, classes, found.threshold, found.temperature)
    assert reached >= wanted
    for threshold in np.linspace(0, found.threshold - 1e-6, 300):
        other, share = _accuracy(edge, full, classes, threshold, found.temperature)
        assert other < wanted or share >= escalated


def test_the_cap_bounds_what_is_escalated(caplog: pytest.LogCaptureFixture) -> None:
    edge, full, classes = _pair()
    found = calibrate(edge, full, classes, Target(gap=0.0, margin=0.0, cap=0.2))
    reached, escalated = _accuracy(edge, full, classes, found.threshold, found.temperature)
    assert 0.15 < escalated <= 0.2
    assert "escalating at most 20 %" in caplog.text
    assert all(
        _accuracy(edge, full, classes, point.threshold, found.temperature)[0] <= reached
        for point in found.curve
        if point.escalated <= 0.2
    )


def test_an_edge_as_good_as_the_full_model_escalates_nothing() -> None:
    edge, _, classes = _pair()
    found = calibrate(edge, edge, classes)
    assert found.threshold == 0
    assert cascade(edge, edge, found)[1].sum() == 0


def test_the_curve_says_what_happens_at_its_thresholds() -> None:
    edge, full, classes = _pair()
    found = calibrate(edge, full, classes)
    assert 0.8 * CURVE_POINTS <= len(found.curve) <= CURVE_POINTS
    assert found.curve[0].threshold == found.curve[0].escalated == 0
    assert found.curve[-1].escalated > 0.97
    assert [p.threshold for p in found.curve] == sorted({p.threshold for p in found.curve})
    for point in found.curve:
        accuracy, escalated = _accuracy(edge, full, classes, point.threshold, found.temperature)
        assert point.accuracy == pytest.approx(accuracy)
        assert point.escalated == pytest.approx(escalated)


def test_nothing_is_certified_yet() -> None:
    found = calibrate(*_pair(100))
    assert found.certificate is None
    assert (found.samples, found.scorer) == (100, Scorer.MAX_PROBABILITY)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.sampled_from(Scorer),
    st.integers(0, 2**32 - 1),
)
def test_any_logits_with_ties_give_a_threshold_within_the_cap(
    levels: list[int], scorer: Scorer, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    edge = np.stack([np.array([level, 0.0, -1.0], np.float32) for level in levels])
    full = rng.normal(size=edge.shape).astype(np.float32)
    classes = rng.integers(0, 3, len(levels))
    found = calibrate(edge, full, classes, scorer=scorer)
    assert 0 <= found.threshold <= 1
    assert math.isfinite(found.temperature)
    assert cascade(edge, full, found)[1].mean() <= 0.30


def test_arrays_that_do_not_fit_are_refused() -> None:
    edge, full, classes = _pair(10)
    with pytest.raises(InvalidInput, match=r"logits \[10, 5\] and \[9, 5\] do not fit 10 classes"):
        calibrate(edge, full[:9], classes)
    with pytest.raises(InvalidInput, match="do not fit 0 classes"):
        calibrate(edge[:0], full[:0], classes[:0])
    edge[3, 2] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        calibrate(edge, full, classes)
