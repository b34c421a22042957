"""What the benchmark of joint inference sends: samples with their truth, thresholds from the bundle."""

import numpy as np

from benchmarks.sensor import LENGTH, STATES, windows
from benchmarks.workloads import CIFAR10, MOST_LOSS, lowest_threshold
from inference_core.bundle import load_bundle


def test_the_threshold_is_the_lowest_that_keeps_the_accuracy() -> None:
    manifest = load_bundle(CIFAR10).manifest
    threshold = lowest_threshold(manifest)
    curve = sorted(manifest.calibration.curve, key=lambda point: point.threshold)
    at = next(point for point in curve if point.threshold == threshold)
    assert at.accuracy >= curve[-1].accuracy - MOST_LOSS
    assert all(p.accuracy < curve[-1].accuracy - MOST_LOSS for p in curve if p.threshold < threshold)
    assert at.escalated < manifest.calibration.curve[-1].escalated


def test_windows_are_the_same_every_time_and_differ_by_state() -> None:
    made, states = windows(12, seed=3)
    again, same = windows(12, seed=3)
    assert made.shape == (12, 1, LENGTH)
    assert made.nbytes == 12 * (256 << 10)
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(states, same)
    assert set(states) <= set(range(len(STATES)))
    assert not np.array_equal(windows(12, seed=4)[0], made)
