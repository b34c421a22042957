"""The breaker against a clock that is turned by hand."""

import itertools
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_node.breaker import ALIKE, Breaker, Call, Permit, Rules, State, verdict

OPEN_S = 10.0
USUAL_S = 0.2
QUICK_S = 0.01


class Watched:
    """A breaker that opens after three failures in a row, and the changes that it told of."""

    def __init__(self, rules: Rules | None = None, jitter: float = 1.0) -> None:
        self.changes: list[State] = []
        self.breaker = Breaker(
            rules or Rules(3), OPEN_S, lambda: jitter, self.changes.append, usual_s=USUAL_S / 2
        )

    def is_in(self, state: State) -> bool:
        return self.breaker.state is state

    def permit(self, patience_s: float = USUAL_S) -> Permit:
        permit = self.breaker.allow(patience_s)
        assert permit is not None
        return permit

    def trial(self, now: float = OPEN_S) -> Permit:
        permit = self.breaker.trial(now)
        assert permit is not None
        return permit

    def fail(self, times: int = 3, now: float = 0.0, patience_s: float = USUAL_S) -> None:
        for _ in range(times):
            self.breaker.failure(self.permit(patience_s), patience_s, now)

    def answer(self, seconds: float = QUICK_S, now: float = 0.0) -> None:
        self.breaker.success(self.permit(), seconds, now)


def test_a_new_breaker_lets_every_call_through() -> None:
    watched = Watched()
    assert all(watched.breaker.allow(patience) for patience in (1e-6, USUAL_S, 1e6, math.inf))
    assert not watched.breaker.due(1e9)
    assert watched.changes == []


def test_failures_in_a_row_open_it() -> None:
    watched = Watched()
    watched.fail(2)
    assert watched.is_in(State.CLOSED)
    watched.fail(1)
    assert watched.is_in(State.OPEN)
    assert watched.breaker.allow(USUAL_S) is None
    assert watched.changes == [State.OPEN]


def test_an_answer_starts_the_row_again() -> None:
    watched = Watched(Rules(3, share=1.0))
    for _ in range(5):
        watched.fail(2)
        watched.answer()
    assert watched.is_in(State.CLOSED)


def test_abandoned_calls_neither_start_the_row_again_nor_lengthen_it() -> None:
    watched = Watched()
    watched.fail(2)
    for _ in range(5):
        watched.breaker.abandon(watched.permit())
    assert watched.is_in(State.CLOSED)
    watched.fail(1)
    assert watched.is_in(State.OPEN)


@pytest.mark.parametrize(("failures_in_ten", "opens"), [(4, False), (5, True)])
def test_a_share_of_failures_opens_it_though_there_is_no_row(failures_in_ten: int, opens: bool) -> None:
    watched = Watched(Rules(5, window=10, share=0.5))
    for n in range(40):
        if n * failures_in_ten % 10 < failures_in_ten:
            if watched.breaker.blocks(USUAL_S):
                break
            watched.fail(1)
        elif not watched.breaker.blocks(USUAL_S):
            watched.answer()
    assert watched.is_in(State.OPEN) == opens


def test_an_answer_that_took_too_long_by_the_settings_is_a_failure() -> None:
    watched = Watched(Rules(3, slow_s=0.1))
    for _ in range(3):
        watched.answer(0.09)
    assert watched.is_in(State.CLOSED)
    for _ in range(3):
        watched.answer(0.11)
    assert watched.is_in(State.OPEN)


def test_impatient_calls_are_left_out_and_patient_ones_still_made() -> None:
    watched = Watched()
    watched.fail(patience_s=0.02)
    assert watched.breaker.blocks(0.02)
    assert watched.breaker.blocks(0.02 * ALIKE)
    assert not watched.breaker.blocks(0.02 * ALIKE + 1e-9)
    assert watched.is_in(State.CLOSED)
    assert watched.breaker.level == pytest.approx(0.03)


def test_no_answer_for_the_patient_is_none_for_the_impatient() -> None:
    watched = Watched()
    watched.fail(patience_s=USUAL_S)
    assert all(watched.breaker.blocks(patience) for patience in (1e-6, 0.02, USUAL_S))


def test_the_impatient_do_not_pay_for_a_row_of_others_that_were_answered_in_time() -> None:
    watched = Watched(Rules(3, share=1.0))
    watched.fail(2, patience_s=USUAL_S)
    watched.answer(0.01)  # in time for who waits 0.02
    watched.fail(1, patience_s=0.02)
    assert not watched.breaker.blocks(0.02)


def test_an_answer_that_was_late_for_the_impatient_does_not_spare_them() -> None:
    watched = Watched()
    for _ in range(3):
        watched.answer(0.1)
        watched.fail(1, patience_s=0.02)
    assert watched.breaker.blocks(0.02)
    assert not watched.breaker.blocks(USUAL_S)


def test_an_error_of_the_clouds_own_speaks_against_every_call() -> None:
    watched = Watched()
    for _ in range(3):
        watched.breaker.failure(watched.permit(), math.inf, 0.0)
    assert watched.breaker.blocks(1e9)


def test_it_stays_open_for_its_time_and_then_lets_one_call_try() -> None:
    watched = Watched()
    watched.fail(now=100.0)
    assert not watched.breaker.due(109.999)
    assert watched.breaker.trial(109.999) is None
    assert watched.breaker.due(110.0)
    assert watched.breaker.trial(110.0) is not None
    assert watched.is_in(State.HALF_OPEN)
    assert watched.breaker.trial(1e9) is None
    assert watched.breaker.blocks(USUAL_S)


def test_another_connection_is_tried_at_once() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.hurry(1.0)
    assert watched.breaker.due(1.0)
    watched.breaker.failure(watched.trial(1.0), USUAL_S, 2.0)
    assert not watched.breaker.due(1.0 + OPEN_S)


def test_jitter_stretches_the_open_time() -> None:
    for jitter in (0.8, 1.2):
        watched = Watched(jitter=jitter)
        watched.fail()
        assert not watched.breaker.due(OPEN_S * jitter - 0.001)
        assert watched.breaker.due(OPEN_S * jitter)


def test_a_trial_that_is_answered_closes_it() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.success(watched.trial(), QUICK_S, OPEN_S)
    assert watched.changes == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    watched.fail(2)
    assert watched.is_in(State.CLOSED)


def test_a_trial_that_fails_opens_it_for_another_while() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.failure(watched.trial(), USUAL_S, OPEN_S + 1)
    assert watched.is_in(State.OPEN)
    assert not watched.breaker.due(2 * OPEN_S + 0.999)
    assert watched.breaker.due(2 * OPEN_S + 1)


def test_a_trial_that_is_answered_too_late_for_those_left_out_does_not_let_them_in() -> None:
    watched = Watched()
    watched.fail(patience_s=0.02)
    watched.breaker.success(watched.trial(), 0.1, OPEN_S + 1)
    assert watched.breaker.blocks(0.02)
    assert not watched.breaker.due(2 * OPEN_S + 0.999)
    watched.breaker.success(watched.trial(2 * OPEN_S + 1), 0.01, 2 * OPEN_S + 1)
    assert not watched.breaker.blocks(0.02)


def test_one_trial_without_an_answer_does_not_shut_out_the_patient() -> None:
    watched = Watched()
    watched.fail(patience_s=0.02)
    now = OPEN_S
    for tries in range(3):
        assert not watched.breaker.blocks(USUAL_S), tries
        watched.breaker.failure(watched.trial(now), USUAL_S, now)
        now += OPEN_S
    assert watched.breaker.blocks(USUAL_S)


def test_a_patient_call_that_is_answered_soon_lets_the_impatient_in_again_after_a_while() -> None:
    watched = Watched()
    watched.fail(patience_s=0.02)
    watched.answer(0.005, now=OPEN_S - 1)
    assert watched.breaker.blocks(0.02)
    watched.answer(0.005, now=OPEN_S)
    assert not watched.breaker.blocks(0.02)


def test_a_trial_that_says_nothing_makes_room_for_the_next_one() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.abandon(watched.trial())
    assert watched.is_in(State.OPEN)
    watched.breaker.success(watched.trial(), QUICK_S, OPEN_S)
    assert watched.is_in(State.CLOSED)


def test_a_straggler_from_before_it_opened_does_not_lengthen_the_open_time() -> None:
    watched = Watched()
    straggler = watched.permit()
    watched.fail()
    watched.breaker.failure(straggler, USUAL_S, 9.0)
    assert watched.breaker.due(OPEN_S)


def test_a_straggler_that_is_answered_does_not_close_it() -> None:
    watched = Watched()
    straggler = watched.permit()
    watched.fail()
    watched.breaker.success(straggler, QUICK_S, 9.0)
    assert watched.is_in(State.OPEN)


def test_a_straggler_does_not_let_a_second_call_try_beside_the_trial() -> None:
    watched = Watched()
    stragglers = [watched.permit() for _ in range(2)]
    watched.fail()
    watched.trial()
    watched.breaker.abandon(stragglers[0])
    watched.breaker.failure(stragglers[1], USUAL_S, OPEN_S)
    assert watched.is_in(State.HALF_OPEN)
    assert watched.breaker.trial(1e9) is None


def test_a_straggler_does_not_count_after_it_closed_again() -> None:
    watched = Watched(Rules(1))
    straggler = watched.permit()
    watched.fail(1)
    watched.breaker.success(watched.trial(), QUICK_S, OPEN_S)
    watched.breaker.failure(straggler, USUAL_S, OPEN_S)
    assert watched.is_in(State.CLOSED)


def test_a_trial_that_comes_to_nothing_after_it_closed_does_not_disturb_the_next() -> None:
    watched = Watched()
    watched.fail(patience_s=0.02)
    old = watched.trial(OPEN_S)
    watched.answer(0.005, now=OPEN_S)
    watched.fail(patience_s=0.02)
    watched.trial(2 * OPEN_S)
    watched.breaker.abandon(old)
    assert watched.breaker.trial(3 * OPEN_S) is None


@pytest.mark.parametrize(
    ("outcomes", "level"),
    [
        ([], 0.0),
        ([("-", 1.0)] * 2, 0.0),
        ([("-", 1.0)] * 3, 1.0),
        ([("-", 1.0), ("-", 2.0), ("-", 3.0)], 1.0),
        ([("-", 1.0), ("-", 2.0), ("-", 3.0), ("-", 4.0)], 2.0),
        ([("-", 1.0), ("-", 1.0), ("+", 0.4), ("-", 1.0)], 0.4),
        ([("+", 0.4), ("-", 1.0), ("-", 1.0), ("-", 1.0)], 1.0),
    ],
)
def test_the_level_that_calls_speak_for(outcomes: list[tuple[str, float]], level: float) -> None:
    calls = [Call(seconds, failed=sign == "-") for sign, seconds in outcomes]
    assert verdict(calls, Rules(3, share=1.0)) == level


class AnyCalls(RuleBasedStateMachine):
    """Calls of any patience that start, end and overlap in any order, by a plain reading of the rules."""

    calls: Bundle[tuple[float, Permit | None]] = Bundle("calls")

    @initialize(failures=st.integers(1, 4), share=st.sampled_from([0.5, 1.0]))
    def begin(self, failures: int, share: float) -> None:
        self.now = 0.0
        self.limits = Rules(failures, window=8, share=share, least=4)
        self.watched = Watched(self.limits)
        self.breaker = self.watched.breaker
        self.log: list[Call] = []  # since it last closed
        self.closed = 0
        self.opened_at = -math.inf
        self.running: Permit | None = None

    @rule(seconds=st.floats(0.01, 2 * OPEN_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def hurry(self) -> None:
        self.breaker.hurry(self.now)
        self.opened_at = min(self.opened_at, self.now - OPEN_S)

    @rule(target=calls, patience=st.sampled_from([0.005, 0.02, 0.1, USUAL_S, 1.0]))
    def start(self, patience: float) -> tuple[float, Permit | None]:
        permit = self.breaker.allow(patience)
        assert (permit is None) == self.breaker.blocks(patience) == (patience <= self.breaker.level)
        return patience, permit

    @rule(target=calls)
    def try_out(self) -> tuple[float, Permit | None]:
        due = self.breaker.due(self.now)
        permit = self.breaker.trial(self.now)
        assert (permit is not None) == due
        if permit is not None:
            assert self.running is None, "two trials at the same time"
            assert self.now >= self.opened_at + OPEN_S
            self.running = permit
        return USUAL_S, permit

    def _end(self, permit: Permit) -> bool:
        """Whether what comes of it counts."""
        if permit is self.running:
            self.running = None
        return permit.period == self.closed

    @rule(call=consumes(calls), share=st.floats(0.01, 1.0))
    def succeed(self, call: tuple[float, Permit | None], share: float) -> None:
        patience, permit = call
        if permit is None:
            return
        level, waited = self.breaker.level, self.now >= self.opened_at + OPEN_S
        counts = self._end(permit)
        self.breaker.success(permit, patience * share, self.now)
        if counts and patience * share < level and (permit.trial or waited):
            assert self.breaker.level == 0
            self.closed, self.log, self.running = self.closed + 1, [], None
        else:
            assert self.breaker.level == level
            self.log += [Call(patience * share, failed=False)] * counts
            if counts and permit.trial:
                self.opened_at = self.now

    @rule(call=consumes(calls), own=st.booleans())
    def fail(self, call: tuple[float, Permit | None], own: bool) -> None:
        patience, permit = call
        if permit is None:
            return
        level, counts = self.breaker.level, self._end(permit)
        self.breaker.failure(permit, math.inf if own else patience, self.now)
        if counts:
            self.log.append(Call(math.inf if own else patience * ALIKE, failed=True))
        assert self.breaker.level >= level
        if (counts and permit.trial) or self.breaker.level > level:
            self.opened_at = self.now

    @rule(call=consumes(calls))
    def abandon(self, call: tuple[float, Permit | None]) -> None:
        if call[1] is not None:
            level = self.breaker.level
            self._end(call[1])
            self.breaker.abandon(call[1])
            assert self.breaker.level == level

    @invariant()
    def who_failed_often_enough_is_left_out(self) -> None:
        """By the words of the rule, for each patience there is."""
        log = self.log[-self.limits.window :]
        for patience in (0.005, 0.02, 0.1, USUAL_S, 1.0):
            tells = [c for c in log if (c.seconds >= patience if c.failed else c.seconds < patience)]
            row = list(itertools.takewhile(lambda call: call.failed, reversed(tells)))
            bad = sum(call.failed for call in tells)
            share = bad >= max(self.limits.failures, self.limits.share * len(tells)) and len(tells) >= 4
            if (log and log[-1].failed) and (len(row) >= self.limits.failures or share):
                assert self.breaker.blocks(patience)

    @invariant()
    def nobody_is_left_out_without_a_failure_that_says_so(self) -> None:
        reaches = [call.seconds for call in self.log if call.failed]
        assert self.breaker.level <= max(reaches, default=0.0)

    @precondition(lambda self: self.breaker.level > 0)
    @invariant()
    def a_trial_is_due_after_the_open_time(self) -> None:
        assert self.breaker.due(self.opened_at + OPEN_S) == (self.running is None)

    @invariant()
    def the_state_is_that_of_a_usual_call(self) -> None:
        usual = self.breaker.level >= USUAL_S / 2
        expected = State.CLOSED if not usual else State.OPEN if self.running is None else State.HALF_OPEN
        assert self.breaker.state is expected

    @invariant()
    def tells_of_every_change_once(self) -> None:
        changes = [State.CLOSED, *self.watched.changes]
        assert all(before is not after for before, after in itertools.pairwise(changes))
        assert changes[-1] is self.breaker.state


def test_any_calls_in_any_order() -> None:
    rules = settings(max_examples=100, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(AnyCalls, settings=rules)
