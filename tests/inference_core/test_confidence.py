"""Confidence maths against naive formulas, and for every finite row of logits."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from inference_core.confidence import Scorer, judge, margin, max_probability, negative_entropy, score, softmax
from inference_core.errors import InvalidInput

SHAPES = hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=12)
ANY_FINITE = hnp.arrays(np.float64, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False))
ANY_FINITE_32 = hnp.arrays(
    np.float32, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)
MODERATE = hnp.arrays(np.float64, SHAPES, elements=st.floats(-30, 30))
ROWS = hnp.arrays(np.float64, st.integers(2, 10), elements=st.floats(-30, 30))
TEMPERATURES = st.floats(0, exclude_min=True, allow_infinity=False)


def naive_softmax(row: NDArray[np.float64], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def naive_score(probabilities: list[float], scorer: Scorer) -> float:
    ordered = sorted(probabilities, reverse=True)
    if scorer is Scorer.MAX_PROBABILITY or len(ordered) == 1:
        return ordered[0]
    if scorer is Scorer.MARGIN:
        return ordered[0] - ordered[1]
    entropy = -sum(p * math.log(p) for p in probabilities if p)
    return 1 - entropy / math.log(len(probabilities))


@given(MODERATE, st.floats(0.2, 10))
def test_agrees_with_the_naive_formulas(logits: NDArray[np.float64], temperature: float) -> None:
    probabilities = softmax(logits, temperature)
    rows = logits.reshape(-1, logits.shape[-1])
    expected = np.array([naive_softmax(row, temperature) for row in rows]).reshape(logits.shape)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-9, atol=1e-15)
    for scorer in Scorer:
        naive = [naive_score(list(row), scorer) for row in expected.reshape(rows.shape)]
        np.testing.assert_allclose(np.ravel(score(probabilities, scorer)), naive, atol=1e-9)


@given(st.one_of(ANY_FINITE, ANY_FINITE_32), TEMPERATURES)
def test_any_finite_logits_give_a_confidence(logits: NDArray[Any], temperature: float) -> None:
    probabilities = softmax(logits, temperature)
    assert probabilities.shape == logits.shape
    assert probabilities.dtype == np.float64
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1)
    for scorer in Scorer:
        confidence = score(probabilities, scorer)
        assert confidence.shape == logits.shape[:-1]
        assert ((confidence >= 0) & (confidence <= 1)).all()


@given(ANY_FINITE)
def test_the_likeliest_class_is_that_of_the_largest_logit(logits: NDArray[np.float64]) -> None:
    probabilities = softmax(logits)
    largest = np.take_along_axis(probabilities, logits.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(largest, probabilities.max(axis=-1))


@given(ROWS, st.floats(0.05, 20), st.floats(0.05, 20))
def test_a_higher_temperature_never_raises_the_confidence(
    logits: NDArray[np.float64], one: float, other: float
) -> None:
    cool, hot = softmax(logits, min(one, other)), softmax(logits, max(one, other))
    for scorer in Scorer:
        assert score(cool, scorer) >= score(hot, scorer) - 1e-12


@given(ROWS, st.floats(-1000, 1000))
def test_adding_a_constant_changes_nothing(logits: NDArray[np.float64], constant: float) -> None:
    np.testing.assert_allclose(softmax(logits + constant), softmax(logits), atol=1e-9)


@given(ROWS, st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_the_order_of_classes(logits: NDArray[np.float64], random: Any) -> None:
    shuffled = logits.copy()
    random.shuffle(shuffled)
    for scorer in Scorer:
        np.testing.assert_allclose(
            score(softmax(shuffled), scorer), score(softmax(logits), scorer), atol=1e-9
        )


@given(MODERATE)
def test_a_row_alone_scores_as_it_does_in_a_batch(logits: NDArray[np.float64]) -> None:
    rows = logits.reshape(-1, logits.shape[-1])
    for scorer in Scorer:
        together = score(softmax(rows), scorer)
        alone = [float(score(softmax(row), scorer)) for row in rows]
        np.testing.assert_allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("scorer", Scorer)
@pytest.mark.parametrize(
    "logits",
    [
        [1e4, 0.0, 0.0],
        [np.finfo(np.float64).max, np.finfo(np.float64).min, 0.0],
        [3.0e38, -3.0e38, 0.0],
        [800.0, -800.0, -800.0],
    ],
)
def test_saturated_rows_are_certain(scorer: Scorer, logits: list[float]) -> None:
    probabilities = softmax(np.array(logits))
    np.testing.assert_array_equal(probabilities, [1, 0, 0])
    assert score(probabilities, scorer) == 1.0


@pytest.mark.parametrize("value", [0.0, 5e-324, -1e-300, 1e300, np.finfo(np.float64).max])
def test_equal_logits_are_at_chance(value: float) -> None:
    probabilities = softmax(np.full(4, value))
    assert max_probability(probabilities) == 0.25
    assert margin(probabilities) == 0.0
    assert negative_entropy(probabilities) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scorer", Scorer)
def test_a_single_class_is_always_certain(scorer: Scorer) -> None:
    np.testing.assert_array_equal(score(softmax(np.array([[-7.0], [1e308]])), scorer), [1, 1])


def test_a_tiny_temperature_decides_and_a_huge_one_levels() -> None:
    np.testing.assert_array_equal(softmax(np.array([1.0, 1.0 + 1e-9, 0.0]), 5e-324), [0, 1, 0])
    np.testing.assert_allclose(softmax(np.array([9.0, 1.0, 0.0]), 1e308), [1 / 3] * 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64])
def test_every_number_type_is_computed_in_float64(dtype: type[np.generic]) -> None:
    given = np.array([[1, 2, 3]], dtype)
    np.testing.assert_allclose(softmax(given), softmax(given.astype(np.float64)))


def test_logits_are_not_changed() -> None:
    logits = np.array([1.0, 2.0, 3.0])
    logits.setflags(write=False)
    softmax(logits, 2.0)
    np.testing.assert_array_equal(logits, [1, 2, 3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", range(3))
def test_one_value_that_is_not_finite_is_refused(bad: float, at: int) -> None:
    logits = np.zeros((2, 3))
    logits[1, at] = bad
    with pytest.raises(InvalidInput, match="NaN or an infinity"):
        softmax(logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_an_impossible_temperature_is_a_mistake_of_the_program(temperature: float) -> None:
    with pytest.raises(RuntimeError, match="temperature"):
        softmax(np.array([1.0, 2.0]), temperature)


def test_known_values() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(max_probability(probabilities), [0.7, 0.5])
    np.testing.assert_allclose(margin(probabilities), [0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(
        negative_entropy(probabilities), [1 - 0.8018185525433373 / math.log(3), 1 - math.log(2) / math.log(3)]
    )


def test_scorers_order_clear_rows_alike() -> None:
    rows = softmax(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
    for scorer in Scorer:
        values = score(rows, scorer)
        assert all(low < high for low, high in itertools.pairwise(values))


FEW_OR_MANY = hnp.arrays(
    np.float64, st.integers(1, 130), elements=st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.one_of(FEW_OR_MANY, ROWS), TEMPERATURES | st.floats(0.2, 10), st.sampled_from(Scorer))
def test_a_row_is_judged_as_all_are(logits: NDArray[Any], temperature: float, scorer: Scorer) -> None:
    expected = softmax(logits, temperature)
    probabilities, confidence = judge(logits, temperature, scorer)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12, atol=1e-300)
    assert confidence == pytest.approx(float(score(expected, scorer)), rel=1e-9, abs=1e-12)
    assert type(confidence) is float


@pytest.mark.parametrize("classes", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_row_with_no_number_is_refused(classes: int, wrong: float) -> None:
    logits = np.zeros(classes, np.float32)
    logits[-1] = wrong
    with pytest.raises(InvalidInput, match="a NaN or an infinity"):
        judge(logits, 1.0, Scorer.MARGIN)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("classes", [3, 200])
def test_a_row_needs_a_temperature(classes: int, temperature: float) -> None:
    with pytest.raises(RuntimeError, match="temperature"):
        judge(np.zeros(classes), temperature, Scorer.MARGIN)
