"""Windows are compared with the last that was kept, by their largest difference."""

import numpy as np
import pytest

from edge_node.change_filter import ChangeFilter

QUIET = np.zeros((1, 4), np.float32)


@pytest.fixture
def changes() -> ChangeFilter:
    made = ChangeFilter()
    made.kept("m", QUIET)
    return made


def test_a_first_window_passes(changes: ChangeFilter) -> None:
    assert changes.passes("another", QUIET, 1.0)
    assert not changes.passes("m", QUIET, 0.0)


@pytest.mark.parametrize(("value", "passes"), [(0.5, False), (0.51, True), (-0.51, True), (-0.5, False)])
def test_one_value_beyond_the_threshold_is_enough(changes: ChangeFilter, value: float, passes: bool) -> None:
    window = QUIET.copy()
    window[0, 2] = value
    assert changes.passes("m", window, 0.5) is passes


def test_the_baseline_is_the_last_that_was_kept_not_the_last_seen(changes: ChangeFilter) -> None:
    for drift in (0.2, 0.4):
        assert not changes.passes("m", QUIET + np.float32(drift), 0.5)
    assert changes.passes("m", QUIET + np.float32(0.6), 0.5)
    changes.kept("m", QUIET + np.float32(0.6))
    assert not changes.passes("m", QUIET + np.float32(1.0), 0.5)


def test_the_baseline_is_a_copy(changes: ChangeFilter) -> None:
    window = QUIET.copy()
    changes.kept("m", window)
    window += 9
    assert not changes.passes("m", QUIET, 0.5)


def test_unsigned_values_do_not_wrap_around(changes: ChangeFilter) -> None:
    changes.kept("u", np.array([[200]], np.uint8))
    assert changes.passes("u", np.array([[100]], np.uint8), 99)
    assert not changes.passes("u", np.array([[100]], np.uint8), 100)


def test_another_shape_passes(changes: ChangeFilter) -> None:
    assert changes.passes("m", np.zeros((1, 5), np.float32), 9.0)
