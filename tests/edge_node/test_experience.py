"""What serving a model teaches: averages that begin with what was expected and follow what is seen."""

import pytest

from edge_node.experience import Average, Duration, Expected, Experience


def test_an_average_begins_with_what_is_expected_and_follows() -> None:
    average = Average(4.0)
    assert average.value == 4.0
    average.add(8.0)
    assert average.value == pytest.approx(5.0)  # what was expected counts as three
    for _ in range(60):
        average.add(8.0)
    assert average.value == pytest.approx(8.0, rel=0.01)
    for _ in range(30):
        average.add(2.0)
    assert average.value == pytest.approx(2.0, rel=0.2)


def test_one_stall_is_no_trend() -> None:
    duration = Duration(0.002)
    duration.add(5.0)
    assert duration.value < 0.005
    for _ in range(60):
        duration.add(0.1)
    assert duration.value == pytest.approx(0.1, rel=0.05)
    zero = Duration(0.0)
    zero.add(1.0)
    assert zero.value > 0


def test_a_model_begins_with_its_bundles_figures() -> None:
    experience = Experience(Expected(0.1, 0.3, {"thin": 1.5}, {"image": 2.0, "features.thin": 0.5}, 0.25))
    assert experience.edge_s.value == 0.0003
    assert experience.head_s["thin"].value == 0.0015
    assert experience.cloud_s["features.thin"].value == 0.0005
    assert experience.escalated.value == 0.25
    assert 0 < experience.packed["thin"].value < 1
