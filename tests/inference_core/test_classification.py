"""Outputs as tensors and as their best classes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.classification import check_outputs, class_count, classes, select
from inference_core.errors import InvalidInput

LABELS = ("red", "green", "blue")


def texts(array: Any, count: int, labels: tuple[str, ...] = LABELS) -> list[list[str]]:
    found = classes("logits", np.asarray(array), count, labels)
    assert found.dtype == object
    return [[item.decode() for item in row] for row in found]


def test_best_classes_of_each_sample() -> None:
    logits = np.array([[1.5, -2.0, 3.25], [4.0, 5.0, -6.0]], np.float32)
    assert texts(logits, 2) == [
        ["3.250000:2:blue", "1.500000:0:red"],
        ["5.000000:1:green", "4.000000:0:red"],
    ]
    assert classes("logits", logits, 1, LABELS).shape == (2, 1)


def test_more_classes_than_there_are() -> None:
    assert texts([[1.0, 2.0]], 9) == [["2.000000:1:green", "1.000000:0:red"]]


def test_class_without_a_label() -> None:
    assert texts([[1.0, 2.0]], 2, ("red",)) == [["2.000000:1", "1.000000:0:red"]]


def test_equal_values_keep_their_order_and_nan_goes_last() -> None:
    assert texts([[2.0, np.nan, 2.0]], 3) == [["2.000000:0:red", "2.000000:2:blue", "nan:1:green"]]


@pytest.mark.parametrize("dtype", ["u1", "i8", "u8"])
def test_whole_numbers(dtype: str) -> None:
    assert texts(np.array([[0, 7, 3]], dtype), 2) == [["7:1:green", "3:2:blue"]]


def test_other_axes_are_one() -> None:
    assert texts(np.arange(4.0).reshape(1, 2, 2), 1) == [["3.000000:3"]]


def test_no_samples() -> None:
    assert classes("logits", np.zeros((0, 3), np.float32), 2, LABELS).shape == (0, 2)


@pytest.mark.parametrize("array", [np.float32(1), np.array([[True]]), np.array([b"x"], dtype=object)])
def test_what_has_no_classes(array: Any) -> None:
    with pytest.raises(InvalidInput, match=r"output 'logits': .* has no classes"):
        classes("logits", np.asarray(array), 1, LABELS)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), st.integers(1, 25))
def test_values_fall_and_indices_are_right(values: list[float], count: int) -> None:
    (row,) = texts(np.array([values], np.float32), count, ())
    found = [text.split(":") for text in row]
    assert len(found) == min(count, len(values))
    picked = [values[int(index)] for _, index in found]
    assert picked == sorted(values, reverse=True)[: len(picked)]
    assert [float(text) for text, _ in found] == pytest.approx(picked, abs=1e-6)


def test_count_in_the_parameters() -> None:
    assert class_count("logits", {}) == 0
    assert class_count("logits", {"binary_data": True}) == 0
    assert class_count("logits", {"classification": 3}) == 3


@pytest.mark.parametrize("value", [0, -1, True, "3", 1.0])
def test_bad_count(value: Any) -> None:
    with pytest.raises(InvalidInput, match="output 'logits': parameter classification must be a whole"):
        class_count("logits", {"classification": value})


def test_shared_memory() -> None:
    with pytest.raises(InvalidInput, match=r"output 'logits': .*shared memory is not served here"):
        class_count("logits", {"shared_memory_region": "mine"})


def test_selection() -> None:
    outputs = {"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0]])}
    assert select(outputs, {}, LABELS) is outputs
    picked = select(outputs, {"b": 0}, LABELS)
    assert picked.keys() == {"b"}
    assert picked["b"] is outputs["b"]
    assert select(outputs, {"a": 1}, LABELS)["a"].tolist() == [[b"2.000000:1:green"]]
    with pytest.raises(InvalidInput, match="output 'x': the model has 'a', 'b' only"):
        select(outputs, {"x": 0}, LABELS)


def test_outputs_that_are_there() -> None:
    check_outputs(["a"], ["a", "b"])
    check_outputs([], [])
    with pytest.raises(InvalidInput, match="output 'c': the model has 'a', 'b' only"):
        check_outputs(["a", "c"], ["a", "b"])
