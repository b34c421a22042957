"""Temperature, scorers and curve: against what is known of made-up logits, and against brute force."""

import math
from dataclasses import astuple
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.confidence import Scorer, score, softmax
from inference_core.errors import InvalidInput
from toolchain.calibrate import (
    CURVE_POINTS,
    CurveRow,
    aurc,
    calibrate,
    confidences,
    curve,
    expected_calibration_error,
    fit_temperature,
    losses,
    spread_thresholds,
)

Pair = tuple[Any, Any, Any]
SHARES = st.lists(st.sampled_from([0.0, 5e-324, 0.25, 0.5, 1 - 2**-53, 1.0]), min_size=1, max_size=30)


def _pair(count: int = 3000, seed: int = 0, gain: float = 1.0) -> Pair:
    """Logits of an edge model that knows how unsure it is, those of a better one, and the classes."""
    rng = np.random.default_rng(seed)
    edge = rng.normal(0, 2.5, (count, 5))
    chances = softmax(edge).cumsum(axis=1)
    classes = (rng.random((count, 1)) > chances).sum(axis=1).clip(0, 4)
    full = edge + 4 * np.eye(5)[classes] + rng.normal(0, 0.5, edge.shape)
    return (edge * gain).astype(np.float32), full.astype(np.float32), classes


@st.composite
def _any_pair(draw: st.DrawFn) -> Pair:
    """Logits with many ties, and any classes."""
    levels = draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edge = np.stack([rng.permutation(np.array([level, 0.0, -1.0], np.float32)) for level in levels])
    return edge, rng.normal(size=edge.shape).astype(np.float32), rng.integers(0, 3, len(levels))


def _answers(confidence: Any, edge: Any, full: Any, threshold: float) -> Any:
    return np.where(confidence >= threshold, edge.argmax(axis=1), full.argmax(axis=1))


# ---- temperature


@pytest.mark.parametrize("gain", [0.2, 1.0, 6.0])
def test_the_temperature_undoes_a_gain(gain: float) -> None:
    edge, _, classes = _pair(20000, gain=gain)
    assert fit_temperature(edge, classes) == pytest.approx(gain, rel=0.03)


def test_no_temperature_nearby_is_likelier() -> None:
    edge, _, classes = _pair(500, seed=3)
    found = fit_temperature(edge, classes)

    doubt = 1 / (len(classes) + 2)
    targets = np.full(edge.shape, doubt / (edge.shape[1] - 1))
    targets[np.arange(len(classes)), classes] = 1 - doubt

    def loss(temperature: float) -> float:
        return -float((targets * np.log(softmax(edge, temperature))).sum(axis=1).mean())

    assert all(loss(found) <= loss(found * factor) for factor in (0.5, 0.95, 0.999, 1.001, 1.05, 2.0))


def test_an_edge_that_is_right_on_all_samples_stays_uncertain_of_some() -> None:
    full = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    temperature = fit_temperature(full, full.argmax(axis=1))
    confidence = softmax(full, temperature).max(axis=1)
    assert len(np.unique(confidence.round(6))) > 100
    assert (confidence < 0.999).any()


def test_extreme_logits_give_a_finite_temperature() -> None:
    edge = np.array([[1e30, 0.0], [0.0, 1e30]], np.float32)
    for classes in ([0, 1], [1, 0], [0, 0]):
        assert 0.01 < fit_temperature(edge, np.array(classes)) < 51


# ---- expected calibration error


def test_the_calibration_error_of_bins_worked_out_by_hand() -> None:
    probabilities = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    assert expected_calibration_error(probabilities, right, bins=10) == pytest.approx(
        4 / 6 * 0.20 + 2 / 6 * 0.05
    )
    # In one bin the errors of opposite sign cancel.
    assert expected_calibration_error(probabilities, right, bins=1) == pytest.approx(abs(4 - 4.9) / 6)


def test_a_bin_includes_its_upper_edge() -> None:
    probabilities, right = np.array([0.5, 0.5 + 1e-9]), np.array([True, False])
    assert expected_calibration_error(probabilities, right, bins=2) == pytest.approx(0.5)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_calibration_takes_most_of_the_error_away() -> None:
    edge, full, classes = _pair(20000, gain=6.0)
    found = calibrate(edge, full, classes)
    assert found.ece_before > 0.1
    assert found.ece < 0.015
    assert found.samples == 20000


# ---- ranking


def _aurc_by_hand(lost: Any) -> float:
    """From the most confident sample to the least."""
    return float(np.mean([np.mean(lost[:answered]) for answered in range(1, len(lost) + 1)]))


def test_the_area_of_rankings_worked_out_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    best, worst = np.array([0, 0, 0, 1], bool), np.array([1, 0, 0, 0], bool)
    assert aurc(confidence, best) == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)
    assert aurc(confidence, worst) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert aurc(np.full(4, 0.5), worst) == pytest.approx(1 / 4)
    assert aurc(confidence, np.zeros(4, bool)) == 0


def test_ties_are_ranked_as_random_orders_are_on_average() -> None:
    rng = np.random.default_rng(0)
    confidence, lost = rng.integers(0, 4, 40) / 4, rng.random(40) < 0.3
    areas = []
    for _ in range(4000):
        order = np.lexsort((rng.random(40), -confidence))
        areas.append((np.cumsum(lost[order]) / np.arange(1, 41)).mean())
    assert aurc(confidence, lost) == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / math.sqrt(4000))


@given(SHARES, st.integers(0, 2**32 - 1))
def test_the_area_is_the_same_in_any_order_and_on_any_scale(values: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, lost = np.array(values), rng.random(len(values)) < 0.4
    order = rng.permutation(len(values))
    ranks = np.unique(confidence, return_inverse=True)[1] / len(values)
    found = aurc(confidence, lost)
    assert found == aurc(confidence[order], lost[order]) == aurc(ranks, lost)
    sharp = np.sort(lost)
    assert _aurc_by_hand(sharp) - 1e-12 <= found <= _aurc_by_hand(sharp[::-1]) + 1e-12


def test_the_scorer_that_ranks_losses_lowest_is_kept() -> None:
    # The edge is as sure as it may be. The full model helps where two favourites are close, and not where
    # one favourite is low: the margin tells them apart, the largest probability and the entropy mislead.
    chances = np.array([[0.48, 0.47, 0.05], [0.40, 0.30, 0.30], [0.90, 0.05, 0.05]])
    edge = np.log(np.repeat(chances, 100, axis=0)).astype(np.float32)
    classes = np.concatenate([np.repeat([0, 1, 2], counts) for counts in (chances * 100).round().astype(int)])
    full = np.eye(3, dtype=np.float32)[classes]
    full[100:200] = edge[100:200]
    found = calibrate(edge, full, classes)
    assert found.temperature == pytest.approx(1, abs=0.02)
    assert found.scorer is Scorer.MARGIN
    assert [figures.scorer for figures in found.scorers] == list(Scorer)
    by_name = {figures.scorer: figures.aurc for figures in found.scorers}
    assert by_name[Scorer.MARGIN] < min(by_name[Scorer.MAX_PROBABILITY], by_name[Scorer.ENTROPY])
    for scorer in Scorer:
        given_one = calibrate(edge, full, classes, scorer)
        assert (given_one.scorer, given_one.scorers) == (scorer, found.scorers)


def test_among_equal_scorers_the_first_is_kept() -> None:
    edge, full, classes = _pair(300)
    # With two classes all scorers rank alike; with a perfect edge there is nothing to rank.
    two = calibrate(edge[:, :2], full[:, :2], full[:, :2].argmax(axis=1))
    assert two.scorer is Scorer.MAX_PROBABILITY
    same = calibrate(edge, edge, edge.argmax(axis=1))
    assert same.scorer is Scorer.MAX_PROBABILITY
    assert [figures.aurc for figures in same.scorers] == [0, 0, 0]
    assert calibrate(edge, full, classes).temperature == fit_temperature(edge, classes)


def test_confidences_are_the_scores_at_the_temperature() -> None:
    edge, _, _ = _pair(20)
    for scorer in Scorer:
        found = confidences(edge, 1.7, scorer)
        assert found.dtype == np.float64
        assert found.tolist() == score(softmax(edge, 1.7), scorer).tolist()


def test_a_loss_is_where_only_the_full_model_is_right() -> None:
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    edge = np.array([wrong, wrong, right, right], np.float32)
    full = np.array([right, wrong, right, wrong], np.float32)
    assert losses(edge, full, np.ones(4, np.int64)).tolist() == [True, False, False, False]


# ---- thresholds


@given(SHARES, st.integers(2, 40))
def test_thresholds_part_confidences_that_differ(values: list[float], count: int) -> None:
    confidence = np.array(values)
    thresholds, escalated = spread_thresholds(confidence, count)
    assert thresholds[0] == escalated[0] == 0
    assert (np.diff(thresholds) > 0).all()
    assert ((thresholds >= 0) & (thresholds <= 1)).all()
    assert len(thresholds) <= count
    assert escalated.tolist() == [(confidence < threshold).sum() for threshold in thresholds]
    assert escalated[-1] == (confidence < 1).sum()


def test_thresholds_are_spread_evenly_over_the_share_escalated() -> None:
    confidence = np.random.default_rng(0).random(5000) ** 0.05  # nearly all of them close to 1
    _, escalated = spread_thresholds(confidence, 101)
    assert escalated.tolist() == list(range(0, 5001, 50))
    every, _ = spread_thresholds(np.array([0.2, 0.4, 0.4, 0.9]), 10)
    assert every == pytest.approx([0, 0.3, 0.65, 0.95])


# ---- the curve


def test_the_curve_says_what_happens_at_its_thresholds() -> None:
    edge, full, classes = _pair()
    confidence = confidences(edge, 1.2, Scorer.ENTROPY)
    found = curve(confidence, edge, full, classes)
    assert len(found.rows) == len(found.random) == len(found.oracle) == CURVE_POINTS
    lost = losses(edge, full, classes)
    for row in found.rows:
        answers = _answers(confidence, edge, full, row.threshold)
        assert row.escalated == (confidence < row.threshold).mean()
        assert row.accuracy == (answers == classes).mean()
        assert row.agreement == (answers == full.argmax(axis=1)).mean()
        assert row.risk == (lost & (confidence >= row.threshold)).mean()
        assert all(type(value) is float for value in astuple(row))


def test_a_small_curve_worked_out_by_hand() -> None:
    classes = np.zeros(4, np.int64)
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    # The most confident sample is one that the full model spoils, the least confident one that it saves.
    edge = np.array([wrong, right, wrong, right], np.float32)
    full = np.array([right, right, wrong, wrong], np.float32)
    found = curve(np.array([0.2, 0.4, 0.6, 0.8]), edge, full, classes)
    assert [row.threshold for row in found.rows] == pytest.approx([0, 0.3, 0.5, 0.7, 0.9])
    assert [row.accuracy for row in found.rows] == [0.5, 0.75, 0.75, 0.75, 0.5]
    assert [row.agreement for row in found.rows] == [0.5, 0.75, 0.75, 0.75, 1.0]
    assert [row.risk for row in found.rows] == [0.25, 0, 0, 0, 0]
    assert found.random == (0.5,) * 5
    assert found.oracle == (0.5, 0.75, 0.75, 0.75, 0.5)


def test_random_and_oracle_are_what_such_escalation_gives() -> None:
    edge, full, classes = _pair(400, seed=5)
    full = np.where(np.random.default_rng(0).random((400, 1)) < 0.1, -full, full)  # spoils some
    found = curve(confidences(edge, 1, Scorer.MARGIN), edge, full, classes, points=30)
    edge_right, full_right = edge.argmax(axis=1) == classes, full.argmax(axis=1) == classes
    gain = np.sort(full_right.astype(int) - edge_right)[::-1]
    assert gain[0] == 1
    assert gain[-1] == -1
    for row, random, oracle in zip(found.rows, found.random, found.oracle, strict=True):
        best = edge_right.mean() + gain[: round(row.escalated * 400)].sum() / 400
        assert oracle == pytest.approx(best)
        expected = (1 - row.escalated) * edge_right.mean() + row.escalated * full_right.mean()
        assert random == pytest.approx(expected)


@given(_any_pair(), st.sampled_from(Scorer), st.integers(2, 40))
def test_what_every_curve_keeps(pair: Pair, scorer: Scorer, points: int) -> None:
    edge, full, classes = pair
    confidence = confidences(edge, 0.7, scorer)
    found = curve(confidence, edge, full, classes, points)
    rows, slack = found.rows, 1e-12
    first, last = rows[0], rows[-1]
    assert 1 <= len(rows) <= points
    assert (first.threshold, first.escalated) == (0, 0)
    assert first.accuracy == pytest.approx((edge.argmax(axis=1) == classes).mean())
    assert (last.escalated, last.agreement, last.risk) == (1, 1, 0)
    assert found.random[-1] == pytest.approx(last.accuracy)
    for row, random, oracle in zip(rows, found.random, found.oracle, strict=True):
        assert all(0 <= value <= 1 for value in astuple(row))
        assert row.accuracy <= oracle + slack
        assert random <= oracle + slack
        assert last.accuracy - row.accuracy <= row.risk + slack  # so a bound on the risk bounds the gap
        assert row.risk + row.agreement <= 1 + slack
    for before, after in pairwise(rows):
        assert before.threshold < after.threshold
        assert before.escalated < after.escalated
        assert before.agreement <= after.agreement
        assert before.risk >= after.risk


@given(_any_pair(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_samples_does_not_matter(pair: Pair, seed: int) -> None:
    edge, full, classes = pair
    order = np.random.default_rng(seed).permutation(len(classes))
    confidence = confidences(edge, 1.0, Scorer.MAX_PROBABILITY)
    assert curve(confidence, edge, full, classes) == curve(
        confidence[order], edge[order], full[order], classes[order]
    )


@pytest.mark.parametrize("seed", range(5))
def test_neither_the_order_of_the_samples_nor_of_the_classes_changes_the_calibration(seed: int) -> None:
    edge, full, classes = _pair(400, seed)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(400), rng.permutation(5)
    there = calibrate(edge, full, classes)
    back = calibrate(edge[order][:, names], full[order][:, names], np.argsort(names)[classes[order]])
    assert there.scorer is back.scorer
    assert there.temperature == pytest.approx(back.temperature, abs=2e-6)
    assert there.ece_before == pytest.approx(back.ece_before)
    for one, other in zip(there.scorers, back.scorers, strict=True):
        assert one.aurc == pytest.approx(other.aurc)


@given(_any_pair())
def test_without_labels_accuracy_is_agreement(pair: Pair) -> None:
    edge, full, _ = pair
    confidence = confidences(edge, 1.0, Scorer.MARGIN)
    for row in curve(confidence, edge, full, full.argmax(axis=1)).rows:
        assert row.accuracy == row.agreement
        assert row.risk == pytest.approx(1 - row.agreement)


def test_confidences_of_exactly_one_are_never_escalated() -> None:
    edge, full, classes = _pair(4)
    found = curve(np.array([1.0, 0.5, 1.0, 0.5]), edge, full, classes)
    assert [(row.threshold, row.escalated) for row in found.rows] == [(0, 0), (0.75, 0.5)]
    sure = curve(np.ones(4), edge, full, classes)
    assert [astuple(row)[:2] for row in sure.rows] == [(0, 0)]
    assert isinstance(sure.rows[0], CurveRow)


# ---- what is refused


def test_arrays_that_do_not_fit_are_refused() -> None:
    edge, full, classes = _pair(10)
    confidence = np.full(10, 0.5)
    with pytest.raises(InvalidInput, match=r"logits \[10, 5\] and \[9, 5\] do not fit 10 classes"):
        calibrate(edge, full[:9], classes)
    with pytest.raises(InvalidInput, match=r"logits \[10, 5\] and \[10, 5\] do not fit 9 classes"):
        curve(confidence, edge, full, classes[:9])
    with pytest.raises(InvalidInput, match="there are no samples"):
        calibrate(edge[:0], full[:0], classes[:0])
    with pytest.raises(InvalidInput, match="whole numbers from 0 to 4"):
        calibrate(edge, full, classes + 3)
    with pytest.raises(InvalidInput, match=r"confidences \[9\] do not fit 10 samples"):
        curve(confidence[:9], edge, full, classes)
    with pytest.raises(InvalidInput, match=r"confidences \[2\] do not fit 3 samples"):
        aurc(np.array([0.5, 0.5]), np.zeros(3, bool))
    with pytest.raises(InvalidInput, match="there are no samples"):
        expected_calibration_error(np.empty(0), np.empty(0, bool))
    with pytest.raises(InvalidInput, match="at least 2, got 1"):
        curve(confidence, edge, full, classes, points=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    edge, full, classes = _pair(10)
    confidence = np.full(10, 0.5)
    for name, logits in (("edge", edge), ("full", full)):
        broken = {"edge": edge, "full": full, name: logits.copy()}
        broken[name][3, 2] = value
        with pytest.raises(InvalidInput, match=f"the {name} model hold a NaN or an infinity"):
            calibrate(broken["edge"], broken["full"], classes)
        with pytest.raises(InvalidInput, match="NaN or an infinity"):
            confidences(broken[name], 1.0, Scorer.MARGIN)
    confidence[2] = value
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        curve(confidence, edge, full, classes)
