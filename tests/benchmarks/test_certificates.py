"""The benchmark of certificates: what it calls exact is what it counts, and hindsight is never beaten."""

import numpy as np
import pytest

from benchmarks.certificates import Population, made_up, trial
from inference_core.errors import InvalidInput


def test_bounds_are_broken_as_often_as_they_are_expected_to_be() -> None:
    found = [trial(made_up(shape), 0.02, samples=1000, draws=100, seed=shape) for shape in range(6)]
    broken = float(np.mean([one.broken for one in found]))
    expected = float(np.mean([one.chance for one in found]))
    # Three standard deviations of a share of 600 draws.
    assert abs(broken - expected) <= 3 * np.sqrt(0.05 * 0.95 / 600)
    assert all(one.chance <= 0.05 for one in found)


def test_hindsight_escalates_the_least() -> None:
    found = trial(made_up(), 0.02, samples=1000, draws=100)
    assert 0 < found.hindsight < found.escalated < 1
    assert found.ratio == pytest.approx(found.escalated / found.hindsight)


def test_hindsight_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    population = Population("five", confidence, np.array([False, True, False, True, True]))
    assert population.hindsight(0.0) == pytest.approx(4 / 5)
    assert population.hindsight(0.2) == pytest.approx(3 / 5)  # equal confidences stay together
    assert population.hindsight(0.4) == pytest.approx(1 / 5)
    assert population.hindsight(0.6) == 0


def test_a_gap_that_cannot_be_certified_is_counted_as_refused() -> None:
    found = trial(made_up(), 0.001, samples=100, draws=10)
    assert (found.refused, found.broken) == (1.0, 0.0)
    assert np.isnan(found.escalated)
    with pytest.raises(InvalidInput, match="samples and draws must be at least 1, got 0 and 10"):
        trial(made_up(), 0.01, samples=0, draws=10)
