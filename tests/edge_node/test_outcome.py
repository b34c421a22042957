"""Ranking of classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_node.outcome import Prediction, Ranked, rank
from inference_core.confidence import Floats

LABELS = ("zero", "one", "two", "three")


def test_best_class_first() -> None:
    assert rank(np.array([0.1, 0.6, 0.05, 0.25]), LABELS, 3) == Prediction(
        "one", 1, 0.6, (Ranked("one", 1, 0.6), Ranked("three", 3, 0.25), Ranked("zero", 0, 0.1))
    )


def test_equal_classes_keep_the_order_of_the_labels() -> None:
    ranked = rank(np.full(4, 0.25), LABELS, 4)
    assert [item.index for item in ranked.top_k] == [0, 1, 2, 3]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (4, 4), (5, 4), (1000, 4)])
def test_asking_for_more_classes_than_there_are_gives_all(top_k: int, count: int) -> None:
    assert len(rank(np.array([0.1, 0.2, 0.3, 0.4]), LABELS, top_k).top_k) == count


@given(
    row=hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)),
    top_k=st.integers(1, 50),
)
def test_ranking_is_the_sorted_row(row: Floats, top_k: int) -> None:
    labels = tuple(str(i) for i in range(len(row)))
    prediction = rank(row, labels, top_k)
    assert rank(row.tolist(), labels, top_k) == prediction
    values = [item.confidence for item in prediction.top_k]
    assert values == sorted(row.tolist(), reverse=True)[:top_k]
    assert all(
        item.label == str(item.index) and row[item.index] == item.confidence for item in prediction.top_k
    )
    assert (prediction.label, prediction.index, prediction.confidence) == (
        prediction.top_k[0].label,
        prediction.top_k[0].index,
        row.max(),
    )
    assert all(type(item.index) is int and type(item.confidence) is float for item in prediction.top_k)
