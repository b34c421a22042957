"""The limit: between its bounds always, smaller for late answers, larger for those in time."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inference_core.concurrency import Limit


def test_it_begins_with_the_most() -> None:
    assert Limit(2, 64).value(0.0) == 64


@pytest.mark.parametrize(("least", "most"), [(0, 4), (5, 4), (-1, -1)])
def test_bounds_that_make_no_sense(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="a limit lies between"):
        Limit(least, most)


def test_those_of_one_round_cut_once() -> None:
    limit = Limit(2, 100)
    for at in range(50):
        limit.ended(began=at / 100, now=1.0, in_time=False)
    assert limit.value(1.0) == 90
    limit.ended(began=1.001, now=1.01, in_time=False)
    assert limit.value(1.01) == 81


def low(least: int, most: int) -> Limit:
    """One that has come down to its least at the time 0."""
    limit = Limit(least, most)
    for at in range(1000):
        limit.ended(began=at / 1e6 - 1, now=at / 1e6 - 1 + 1e-7, in_time=False)
    limit.ended(began=-0.5, now=0.0, in_time=False)
    for at in range(1000):
        limit.ended(began=at / 1e9 + 1e-12, now=at / 1e9 + 2e-12, in_time=False)
    return limit


def test_it_never_falls_below_the_least() -> None:
    assert low(3, 10).value(0.0) == 3


def test_it_grows_by_one_for_each_round_that_is_in_time() -> None:
    limit = low(10, 100)
    for _ in range(10):
        limit.ended(began=0.0, now=1e-6, in_time=True)
    assert limit.value(1e-6) == 10
    for _ in range(4):
        limit.ended(began=0.0, now=1e-6, in_time=True)
    assert limit.value(1e-6) == 11


def test_a_quiet_time_leaves_nothing_of_a_bad_one() -> None:
    limit = low(2, 40)
    assert limit.value(0.9) == 2
    assert limit.value(2.1) == 7
    assert limit.value(10.0) == 40
    assert limit.value(1e9) == 40


def test_what_can_be_in_time_is_let_in_and_not_much_more() -> None:
    """A server that answers 50 a second, each within 0.2 s or late: about ten may be under way."""
    limit, now = Limit(2, 128), 0.0
    seen = []
    for _ in range(5000):
        now += 0.02
        took = limit.value(now) * 0.02
        limit.ended(began=now - took, now=now, in_time=took <= 0.2)
        seen.append(limit.value(now))
    assert min(seen[3000:]) >= 8
    assert max(seen[3000:]) <= 13


class Limits(RuleBasedStateMachine):
    """A limit with answers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.cut_at = float("-inf")

    @initialize(least=st.integers(1, 10), more=st.integers(0, 100))
    def begin(self, least: int, more: int) -> None:
        self.least, self.most = least, least + more
        self.limit = Limit(self.least, self.most)

    @rule(after=st.floats(0, 10))
    def wait(self, after: float) -> None:
        before = self.limit.value(self.now)
        self.now += after
        assert before <= self.limit.value(self.now) <= before + 5 * after + 1

    @rule(took=st.floats(0, 100), in_time=st.booleans())
    def end(self, took: float, in_time: bool) -> None:
        before, began = self.limit.value(self.now), self.now - took
        self.limit.ended(began, self.now, in_time=in_time)
        after = self.limit.value(self.now)
        if in_time:
            assert before <= after <= before + 1
        elif began > self.cut_at:
            self.cut_at = self.now
            assert max(self.least, int(before * 0.9)) <= after <= before
        else:
            assert after == before

    @invariant()
    def within_its_bounds(self) -> None:
        if hasattr(self, "limit"):
            assert self.least <= self.limit.value(self.now) <= self.most


TestLimits = Limits.TestCase
TestLimits.settings = settings(max_examples=60, deadline=None)
