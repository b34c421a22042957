"""The fitted cost of a batch: it finds the line, follows it, and is not led astray."""

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.batch_cost import BatchCost

SIZES = st.integers(1, 64)
SECONDS = st.floats(1e-7, 1e3)


class Clock:
    """A clock that is set by hand, backwards too."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cost() -> BatchCost:
    return BatchCost(Clock())


def fitted(line: Callable[[int], float], runs: int = 600, noise: float = 0.0, seed: int = 0) -> BatchCost:
    """What is known after runs of all sizes from 1 to 8."""
    found, draw = cost(), random.Random(seed)
    for _ in range(runs):
        n = draw.randint(1, 8)
        found.observe(n, line(n) * (1 + draw.uniform(-noise, noise)))
    return found


def linear(each: float, fixed: float) -> Callable[[int], float]:
    return lambda n: each * n + fixed


def drive(found: BatchCost, line: Callable[[int], float], turns: int, waiting: int = 8) -> list[int]:
    """The sizes that are chosen when `waiting` samples always wait and a run costs `line`."""
    sizes = []
    for _ in range(turns):
        sizes.append(found.best(waiting, 64))
        found.observe(sizes[-1], line(sizes[-1]))
    return sizes


@given(each=st.floats(1e-5, 1e-1), fixed=st.floats(1e-5, 1e-1))
def test_the_line_is_found(each: float, fixed: float) -> None:
    found = fitted(linear(each, fixed))
    assert found.per_sample_s == pytest.approx(each, rel=1e-2, abs=1e-2 * fixed)
    assert found.fixed_s == pytest.approx(fixed, rel=1e-2, abs=1e-2 * each)
    assert found.seconds(16) == pytest.approx(16 * each + fixed, rel=2e-2)


@given(seed=st.integers(0, 1000))
def test_noise_does_not_hide_what_pays(seed: int) -> None:
    assert fitted(linear(1e-3, 1e-3), noise=0.2, seed=seed).pays(8)
    assert not fitted(lambda n: 1e-3 * n**1.4, noise=0.2, seed=seed).pays(8)


@given(
    runs=st.lists(st.tuples(SIZES, SECONDS), max_size=80),
    waiting=st.integers(0, 200),
    limit=st.integers(1, 64),
)
def test_whatever_was_observed_the_answers_make_sense(
    runs: list[tuple[int, float]], waiting: int, limit: int
) -> None:
    found = cost()
    for n, seconds in runs:
        found.observe(n, seconds)
        assert 1 <= found.best(waiting, limit) <= max(min(waiting, limit), 1)
        for size in (1, 2, 64):
            expected = found.seconds(size)
            assert expected is not None
            assert 0 < expected < math.inf
    assert not found.pays(1)


@given(runs=st.lists(st.tuples(SIZES, SECONDS), min_size=1, max_size=80))
def test_what_is_expected_of_a_run_lies_within_what_was_seen(runs: list[tuple[int, float]]) -> None:
    found = cost()
    for n, seconds in runs:
        found.observe(n, seconds)
    each, fixed = found.per_sample_s, found.fixed_s
    assert each is not None
    assert fixed is not None
    assert each >= 0
    assert max(seconds for _, seconds in runs) * 2.1 >= fixed >= -2.1 * max(seconds for _, seconds in runs)


def test_nothing_is_claimed_before_the_first_run() -> None:
    found = cost()
    assert (found.seconds(1), found.fixed_s, found.per_sample_s, found.age_s) == (None, None, None, None)
    assert not found.pays(8)
    assert found.best(1, 8) == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_no_clock_should_give_is_left_out(seconds: float) -> None:
    found = fitted(linear(1e-3, 1e-3))
    before = found.seconds(4)
    found.observe(4, seconds)
    assert found.seconds(4) == before


def test_a_run_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more samples, not 0"):
        cost().observe(0, 1.0)


def test_a_stall_hardly_moves_the_fit() -> None:
    found = fitted(linear(1e-3, 1e-3), noise=0.05)
    before = found.seconds(1)
    found.observe(1, 10.0)
    after = found.seconds(1)
    assert before is not None
    assert after is not None
    assert after < before * 1.15


def test_a_cold_first_run_is_soon_forgotten() -> None:
    found = cost()
    for seconds in (0.5, *[1e-3] * 10):
        found.observe(1, seconds)
    assert found.seconds(1) == pytest.approx(1e-3, rel=0.5)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_lasting_change_is_followed(factor: float) -> None:
    found = fitted(linear(1e-3, 1e-3))
    drive(found, linear(1e-3 * factor, 1e-3 * factor), 300)
    assert found.seconds(8) == pytest.approx(9e-3 * factor, rel=0.1)


def test_runs_of_one_size_keep_the_share_and_move_the_level() -> None:
    found = fitted(linear(1e-3, 1e-3))
    for _ in range(400):
        found.observe(1, 4e-3)
    assert found.seconds(8) == pytest.approx(18e-3, rel=0.15)
    assert found.pays(8)


def test_batches_are_tried_grow_by_doubling_and_stay_where_they_pay() -> None:
    sizes = drive(cost(), linear(1e-3, 1e-3), 200, waiting=32)
    assert all(after <= 2 * max(sizes[: at + 1]) for at, after in enumerate(sizes[1:]))
    assert sizes.count(32) > 150


def test_batches_that_do_not_pay_are_tried_now_and_then_only() -> None:
    sizes = drive(cost(), lambda n: 1e-3 * n**1.3, 2000)
    assert 0.97 < sizes.count(1) / len(sizes) < 1
    assert set(sizes[1000:]) == {1, 2}


def test_batches_that_stop_paying_are_found_out() -> None:
    found = cost()
    drive(found, linear(1e-4, 1e-3), 300)
    sizes = drive(found, lambda n: 1e-3 * n**1.3, 2000)
    assert set(sizes[-200:]) <= {1, 2}
    assert sizes[-200:].count(1) > 150


def test_batches_that_begin_to_pay_are_found_out() -> None:
    found = cost()
    drive(found, lambda n: 1e-3 * n**1.3, 300)
    assert drive(found, linear(1e-4, 1e-3), 1500)[-1] == 8


def test_the_age_is_that_of_the_last_run_and_never_negative() -> None:
    clock = Clock()
    found = BatchCost(clock)
    found.observe(1, 1e-3)
    ages = []
    for now in itertools.chain((2.5, -3.0)):
        clock.now = now
        ages.append(found.age_s)
    assert ages == [2.5, 0.0]


def test_what_each_of_many_costs_is_that_of_full_runs_where_those_pay() -> None:
    cost = BatchCost(lambda: 0.0)
    assert cost.each(8) is None
    for at in range(100):
        n = (1, 8)[at % 2]
        cost.observe(n, 0.008 + 0.001 * n)
    assert cost.each(1) == pytest.approx(0.009, rel=0.01)
    assert cost.each(8) == pytest.approx(0.002, rel=0.01)
    assert cost.each(1000) == pytest.approx((0.008 + 0.016) / 16, rel=0.01)  # no further than twice what ran
    for at in range(300):
        n = (1, 8)[at % 2]
        cost.observe(n, 0.01 * n)
    assert cost.each(8) == pytest.approx(0.01, rel=0.05)
