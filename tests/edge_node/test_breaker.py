"""The breaker against a clock that is turned by hand."""

import itertools

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

from edge_node.breaker import Breaker, State

OPEN_S = 10.0


class Watched:
    """A breaker that opens after three failures in a row, and the changes that it told of."""

    def __init__(self, failures: int = 3, jitter: float = 1.0) -> None:
        self.changes: list[State] = []
        self.breaker = Breaker(failures, OPEN_S, lambda: jitter, self.changes.append)

    def is_in(self, state: State) -> bool:
        return self.breaker.state is state

    def permit(self, now: float = 0.0) -> int:
        permit = self.breaker.allow(now)
        assert permit is not None
        return permit

    def fail(self, times: int = 3, now: float = 0.0) -> None:
        for _ in range(times):
            self.breaker.failure(self.permit(now), now)


def test_a_new_breaker_lets_every_call_through() -> None:
    watched = Watched()
    assert all(watched.breaker.allow(0.0) is not None for _ in range(10))
    assert watched.changes == []


def test_failures_in_a_row_open_it() -> None:
    watched = Watched()
    watched.fail(2)
    assert watched.is_in(State.CLOSED)
    watched.fail(1)
    assert watched.is_in(State.OPEN)
    assert watched.breaker.allow(0.0) is None
    assert watched.changes == [State.OPEN]


def test_a_success_starts_the_row_again() -> None:
    watched = Watched()
    for _ in range(5):
        watched.fail(2)
        watched.breaker.success(watched.permit())
    assert watched.is_in(State.CLOSED)


def test_abandoned_calls_neither_start_the_row_again_nor_lengthen_it() -> None:
    watched = Watched()
    watched.fail(2)
    for _ in range(5):
        watched.breaker.abandon(watched.permit())
    assert watched.is_in(State.CLOSED)
    watched.fail(1)
    assert watched.is_in(State.OPEN)


def test_it_stays_open_for_its_time_and_then_lets_one_call_try() -> None:
    watched = Watched()
    watched.fail(now=100.0)
    assert watched.breaker.blocks(109.999)
    assert watched.breaker.allow(109.999) is None
    assert not watched.breaker.blocks(110.0)
    assert watched.breaker.allow(110.0) is not None
    assert watched.is_in(State.HALF_OPEN)
    assert watched.breaker.blocks(110.0)
    assert watched.breaker.allow(1e9) is None


def test_blocks_changes_nothing() -> None:
    watched = Watched()
    watched.fail()
    for _ in range(3):
        assert not watched.breaker.blocks(OPEN_S)
    assert watched.is_in(State.OPEN)


def test_jitter_stretches_the_open_time() -> None:
    for jitter in (0.8, 1.2):
        watched = Watched(jitter=jitter)
        watched.fail()
        assert watched.breaker.blocks(OPEN_S * jitter - 0.001)
        assert not watched.breaker.blocks(OPEN_S * jitter)


def test_a_probe_that_succeeds_closes_it() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.success(watched.permit(OPEN_S))
    assert watched.changes == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    watched.fail(2)
    assert watched.is_in(State.CLOSED)


def test_a_probe_that_fails_opens_it_for_another_while() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.failure(watched.permit(OPEN_S), OPEN_S + 1)
    assert watched.is_in(State.OPEN)
    assert watched.breaker.blocks(2 * OPEN_S + 0.999)
    assert not watched.breaker.blocks(2 * OPEN_S + 1)


def test_a_probe_that_says_nothing_makes_room_for_the_next_one() -> None:
    watched = Watched()
    watched.fail()
    watched.breaker.abandon(watched.permit(OPEN_S))
    assert watched.is_in(State.HALF_OPEN)
    watched.breaker.success(watched.permit(OPEN_S))
    assert watched.is_in(State.CLOSED)


def test_a_straggler_from_before_it_opened_does_not_lengthen_the_open_time() -> None:
    watched = Watched()
    straggler = watched.permit()
    watched.fail()
    watched.breaker.failure(straggler, 9.0)
    assert not watched.breaker.blocks(OPEN_S)


def test_a_straggler_that_succeeds_does_not_close_it() -> None:
    watched = Watched()
    straggler = watched.permit()
    watched.fail()
    watched.breaker.success(straggler)
    assert watched.is_in(State.OPEN)


def test_a_straggler_does_not_let_a_second_call_try_beside_the_probe() -> None:
    watched = Watched()
    stragglers = [watched.permit() for _ in range(3)]
    watched.fail()
    watched.permit(OPEN_S)
    watched.breaker.abandon(stragglers[0])
    watched.breaker.failure(stragglers[1], OPEN_S)
    watched.breaker.success(stragglers[2])
    assert watched.is_in(State.HALF_OPEN)
    assert watched.breaker.allow(OPEN_S) is None


def test_a_straggler_does_not_count_after_it_closed_again() -> None:
    watched = Watched(failures=1)
    straggler = watched.permit()
    watched.fail(1)
    watched.breaker.success(watched.permit(OPEN_S))
    watched.breaker.failure(straggler, OPEN_S)
    assert watched.is_in(State.CLOSED)


class AnyCalls(RuleBasedStateMachine):
    """Calls that start, end and overlap in any order, and a plain count of what they may do."""

    calls: Bundle[int] = Bundle("calls")

    @initialize(limit=st.integers(1, 4))
    def begin(self, limit: int) -> None:
        self.now = 0.0
        self.limit = limit
        self.watched = Watched(limit)
        self.breaker = self.watched.breaker
        self.row = 0
        self.probe: int | None = None
        self.ids = 0
        self.permits: dict[int, int] = {}
        self.state_of: dict[int, int] = {}  # the changes that had been when the call began
        self.opened_at = 0.0

    @rule(seconds=st.floats(0.01, 2 * OPEN_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=calls)
    def start(self) -> int:
        blocked = self.breaker.blocks(self.now)
        permit = self.breaker.allow(self.now)
        assert (permit is None) == blocked
        self.ids += 1
        if permit is not None:
            if self.breaker.state is State.HALF_OPEN:
                assert self.probe is None, "two probes at the same time"
                self.probe = self.ids
            self.permits[self.ids] = permit
            self.state_of[self.ids] = len(self.watched.changes)
        return self.ids

    def _end(self, call: int) -> bool:
        """Whether the call was let through and belongs to the present state."""
        if call == self.probe:
            self.probe = None
        return call in self.permits and self.state_of[call] == len(self.watched.changes)

    @rule(call=consumes(calls))
    def succeed(self, call: int) -> None:
        current = self._end(call)
        if call in self.permits:
            self.breaker.success(self.permits[call])
        if current:
            self.row = 0
            assert self.breaker.state is State.CLOSED

    @rule(call=consumes(calls))
    def fail(self, call: int) -> None:
        before = self.breaker.state
        current = self._end(call)
        if call in self.permits:
            self.breaker.failure(self.permits[call], self.now)
        if current:
            self.row = self.row + 1 if before is State.CLOSED else self.limit
            if self.row >= self.limit:
                assert self.breaker.state is State.OPEN
                self.row, self.opened_at = 0, self.now

    @rule(call=consumes(calls))
    def abandon(self, call: int) -> None:
        before = self.breaker.state
        self._end(call)
        if call in self.permits:
            self.breaker.abandon(self.permits[call])
        assert self.breaker.state is before

    @precondition(lambda self: self.breaker.state is State.OPEN)
    @rule()
    def open_means_open(self) -> None:
        assert self.breaker.blocks(self.now) == (self.now < self.opened_at + OPEN_S)

    @invariant()
    def says_yes_unless_open_or_probing(self) -> None:
        if self.breaker.state is State.CLOSED:
            assert not self.breaker.blocks(self.now)
        if self.breaker.state is State.HALF_OPEN:
            assert self.breaker.blocks(self.now) == (self.probe is not None)

    @invariant()
    def tells_of_every_change_once(self) -> None:
        changes = [State.CLOSED, *self.watched.changes]
        assert all(before is not after for before, after in itertools.pairwise(changes))
        assert changes[-1] is self.breaker.state


def test_any_calls_in_any_order() -> None:
    rules = settings(max_examples=60, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(AnyCalls, settings=rules)
