"""What may be sent up, against a clock that is turned by hand."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.allowance import Allowance, Budgets
from edge_node.cloud import Attempt
from inference_core.errors import AllowanceSpent, SwitchedOff

DAY_S = 24 * 3600.0


def sent(allowance: Allowance, times: list[float], nbytes: int = 100) -> list[float]:
    """At which of the times something may go up."""
    gone = []
    for now in times:
        with contextlib.suppress(AllowanceSpent):
            allowance.take(now, Attempt.FIRST, nbytes)
            gone.append(now)
    return gone


def every(step: float, seconds: float) -> list[float]:
    return [n * step for n in range(round(seconds / step))]


def test_without_limits_everything_goes() -> None:
    assert len(sent(Allowance(Budgets()), every(0.001, 1.0), 1 << 30)) == 1000


def test_the_switch_goes_before_everything() -> None:
    allowance = Allowance(Budgets(), enabled=False)
    for kind in Attempt:
        with pytest.raises(SwitchedOff):
            allowance.take(0.0, kind, 1)
    with pytest.raises(SwitchedOff):
        allowance.check(0.0)
    allowance.enabled = True
    allowance.take(0.0, Attempt.FIRST, 1)
    allowance.enabled = False
    with pytest.raises(SwitchedOff):
        allowance.take(0.0, Attempt.FIRST, 1)
    assert allowance.day_bytes(0.0) == 1


def test_the_least_time_between_two() -> None:
    allowance = Allowance(Budgets(interval_s=0.5))
    assert sent(allowance, every(0.125, 2.0)) == [0.0, 0.5, 1.0, 1.5]


def test_a_second_try_belongs_to_its_request() -> None:
    allowance = Allowance(Budgets(interval_s=0.5))
    allowance.take(0.0, Attempt.FIRST, 1)
    allowance.take(0.1, Attempt.RETRY, 1)
    allowance.take(0.1, Attempt.HEDGE, 1)
    with pytest.raises(AllowanceSpent, match=r"0\.5 s"):
        allowance.check(0.2)


@pytest.mark.parametrize("rate", [0.1, 1.0, 7.0])
def test_so_many_a_second(rate: float) -> None:
    gone = sent(Allowance(Budgets(per_s=rate)), every(0.01, 50.0))
    assert len(gone) == pytest.approx(max(rate, 1.0) + 50 * rate, abs=1)


def test_retries_and_hedges_count_and_probes_do_not() -> None:
    allowance = Allowance(Budgets(per_s=3.0))
    for kind in (Attempt.RETRY, Attempt.HEDGE, Attempt.TRIAL):
        allowance.take(0.0, kind, 1)
    with pytest.raises(AllowanceSpent, match="3 escalations a second"):
        allowance.take(0.0, Attempt.FIRST, 1)
    allowance.take(0.0, Attempt.PROBE, 1)


def test_so_many_bytes_a_second() -> None:
    gone = sent(Allowance(Budgets(bytes_per_s=1000)), every(0.01, 50.0))
    assert len(gone) * 100 == pytest.approx(50 * 1000 + 1000, rel=0.01)


def test_what_is_larger_than_a_seconds_worth_goes_and_is_paid_for() -> None:
    gone = sent(Allowance(Budgets(bytes_per_s=1000)), every(0.1, 60.0), 5000)
    assert len(gone) == pytest.approx(60 / 5, abs=1)


def test_so_many_bytes_a_day_and_not_one_more() -> None:
    allowance = Allowance(Budgets(bytes_per_day=1000))
    assert len(sent(allowance, every(1.0, 100.0), 150)) == 6
    with pytest.raises(AllowanceSpent, match="1000 bytes in 24 hours"):
        allowance.check(100.0, nbytes=101)
    allowance.take(100.0, Attempt.FIRST, 100)
    assert allowance.day_bytes(100.0) == 1000
    with pytest.raises(AllowanceSpent):
        allowance.check(DAY_S)
    allowance.check(DAY_S + 3600.0)
    assert allowance.day_bytes(DAY_S + 3600.0) == 0


@given(st.lists(st.tuples(st.floats(0, 20_000), st.integers(1, 400)), max_size=60))
def test_no_24_hours_ever_hold_more_than_a_days_budget(steps: list[tuple[float, int]]) -> None:
    allowance, now, gone = Allowance(Budgets(bytes_per_day=1000)), 0.0, list[tuple[float, int]]()
    for wait_s, nbytes in steps:
        now += wait_s
        with contextlib.suppress(AllowanceSpent):
            allowance.take(now, Attempt.FIRST, nbytes)
            gone.append((now, nbytes))
    for end, _ in gone:
        assert sum(nbytes for at, nbytes in gone if end - DAY_S < at <= end) <= 1000


def test_what_is_refused_costs_nothing() -> None:
    allowance = Allowance(Budgets(per_s=1.0, bytes_per_day=100))
    with pytest.raises(AllowanceSpent):
        allowance.take(0.0, Attempt.FIRST, 101)
    allowance.take(0.0, Attempt.FIRST, 100)


@pytest.mark.parametrize("kind", [Attempt.PROBE, Attempt.SAMPLE])
def test_of_what_is_no_escalation_only_the_bytes_count(kind: Attempt) -> None:
    allowance = Allowance(Budgets(interval_s=10.0, per_s=1.0, bytes_per_day=1000))
    for _ in range(5):
        allowance.take(0.0, kind, 100)
    allowance.take(0.0, Attempt.FIRST, 100)
    allowance.take(0.0, kind, 100)
    assert allowance.day_bytes(0.0) == 700
    with pytest.raises(AllowanceSpent):
        allowance.take(0.0, kind, 301)
    allowance.enabled = False
    with pytest.raises(SwitchedOff):
        allowance.take(0.0, kind, 1)
