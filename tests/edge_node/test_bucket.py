"""A bucket of tokens, held against what it promises over any stretch of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.bucket import Bucket


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_in_no_stretch_of_time_are_more_than_burst_and_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    bucket, now, taken = Bucket(rate, burst), 0.0, list[float]()
    for pause in pauses:
        now += pause
        if bucket.take(now) == 0.0:
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first]) + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 5), st.integers(0, 20))
def test_what_it_says_to_wait_is_enough_and_not_too_much(rate: float, burst: int, before: int) -> None:
    bucket = Bucket(rate, burst)
    for _ in range(before):
        bucket.take(0.0)
    wait = bucket.take(0.0)
    assert 0 <= wait <= 1 / rate
    if wait:
        assert bucket.take(wait * 0.9) > 0
        assert bucket.take(wait * 1.001) == 0


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(1.0, 1)
    assert bucket.take(10.0) == 0
    assert bucket.take(9.0) == pytest.approx(1.0)
    assert bucket.take(9.5) == pytest.approx(0.5)
