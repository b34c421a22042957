"""Labels that are not about what the model answers are refused."""

import numpy as np
import pytest

from inference_core.errors import InvalidInput
from toolchain.plausibility import check_plausible

CLASSES = np.arange(60) % 3
RIGHT = np.eye(3, dtype=np.float32)[CLASSES]


def test_a_model_that_is_often_right_is_plausible() -> None:
    check_plausible(RIGHT, CLASSES)
    half = RIGHT.copy()
    half[:25] = np.eye(3, dtype=np.float32)[np.zeros(25, np.int64)]
    check_plausible(half, CLASSES)


def test_outputs_in_another_order_are_told_from_bad_ones() -> None:
    with pytest.raises(InvalidInput, match=r"right on 0\.0% .* would be right on 100\.0%: .* with --labels"):
        check_plausible(RIGHT[:, [1, 2, 0]], CLASSES)
    swapped = RIGHT[:, [1, 0, 2]]
    with pytest.raises(InvalidInput, match=r"right on 33\.3% .* would be right on 100\.0%"):
        check_plausible(swapped, CLASSES)


def test_a_model_that_knows_nothing_of_the_labels_is_refused() -> None:
    always = np.tile(np.array([[1, 0, 0]], np.float32), (60, 1))
    with pytest.raises(InvalidInput, match=r"right on 33\.3% .* most frequent class, 33\.3%: do the labels"):
        check_plausible(always, CLASSES)
