"""The throttle against a clock that is turned by hand, and chance that is none."""

import random

import pytest

from edge_node.throttle import MEMORY_S, MOST, Throttle

RATES = (5, 80, 2500)


def run(throttle: Throttle, rate: int, seconds: float, start: float, room: float) -> tuple[int, int, float]:
    """Ask `rate` times a second of a cloud that accepts the share `room`: how many were sent, how many were
    accepted, and the time at the end."""
    sent, accepted = 0, 0
    count = int(rate * seconds)
    for n in range(count):
        now = start + n / rate
        if throttle.allow(now):
            sent += 1
            taken = int(sent * room) > int((sent - 1) * room)
            accepted += taken
            throttle.told(now, accepted=taken)
    return sent, accepted, start + seconds


def test_a_cloud_that_accepts_everything_is_asked_everything() -> None:
    assert run(Throttle(lambda: 0.0), 100, 10, 0.0, room=1.0)[0] == 1000


def test_one_that_accepts_well_over_half_is_still_asked_everything() -> None:
    throttle = Throttle(random.Random(1).random)
    sent, _, _ = run(throttle, 100, 10, 0.0, room=0.7)
    assert sent > 950


@pytest.mark.parametrize("rate", RATES)
def test_one_that_turns_all_down_is_asked_a_tenth(rate: int) -> None:
    throttle = Throttle(random.Random(2).random)
    _, _, now = run(throttle, rate, 10, 0.0, room=0.0)
    sent, _, _ = run(throttle, rate, 20, now, room=0.0)
    assert sent / (20 * rate) == pytest.approx(1 - MOST, abs=0.1)


@pytest.mark.parametrize("rate", RATES)
def test_it_is_over_within_seconds_at_any_rate(rate: int) -> None:
    throttle = Throttle(random.Random(3).random)
    _, _, now = run(throttle, rate, 30, 0.0, room=0.0)
    _, _, now = run(throttle, rate, 4 * MEMORY_S, now, room=1.0)
    sent, _, _ = run(throttle, rate, 2, now, room=1.0)
    assert sent >= 0.95 * 2 * rate


def test_what_was_long_ago_does_not_count() -> None:
    throttle = Throttle(lambda: 0.0)
    run(throttle, 100, 10, 0.0, room=0.0)
    assert not throttle.allow(10.0)
    throttle = Throttle(lambda: 0.5)
    run(throttle, 100, 10, 0.0, room=0.0)
    assert throttle.allow(30.0)


def test_what_is_dropped_here_counts_as_asked() -> None:
    throttle = Throttle(lambda: 0.0)
    throttle.told(0.0, accepted=False)
    before = throttle.dropped
    assert not throttle.allow(0.0)
    assert throttle.dropped > before
