"""The line: who is next, who is passed over, who has to go, and that nobody is lost."""

from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inference_core.line import PATIENCE, Line
from inference_core.priority import Priority

CRITICAL, NORMAL, BACKGROUND = Priority.CRITICAL, Priority.NORMAL, Priority.BACKGROUND


@dataclass(eq=False)
class Guest:
    """One who waits."""

    name: str
    priority: Priority = NORMAL
    caller: str = ""
    work: float = 1.0
    tag: float = 0.0


def line_of(*guests: Guest) -> Line[Guest]:
    """A line in which these have come in this order."""
    made: Line[Guest] = Line()
    for guest in guests:
        made.add(guest)
    return made


def served(line: Line[Guest], count: int = 1_000_000) -> list[str]:
    """The names of the next, one at a time."""
    names: list[str] = []
    while line and len(names) < count:
        first = next(iter(line))
        line.take([first])
        names.append(first.name)
    return names


def many(name: str, count: int, priority: Priority = NORMAL, work: float = 1.0) -> list[Guest]:
    """So many of one caller, which is called `name`."""
    return [Guest(f"{name}{at}", priority, name, work) for at in range(count)]


def test_one_callers_own_are_first_come_first_served() -> None:
    assert served(line_of(*many("a", 9))) == [f"a{at}" for at in range(9)]


def test_classes_go_before_those_after_them() -> None:
    line = line_of(Guest("b", BACKGROUND), Guest("n1"), Guest("c", CRITICAL), Guest("n2"))
    assert [guest.name for guest in line] == ["c", "n1", "n2", "b"]
    assert served(line) == ["c", "n1", "n2", "b"]


def test_who_is_passed_over_often_enough_is_next() -> None:
    guests = [Guest(f"c{at}", CRITICAL) for at in range(3 * PATIENCE)]
    line = line_of(Guest("b", BACKGROUND), Guest("n"), *guests)
    order = served(line)
    assert order.index("n") == PATIENCE
    assert order.index("b") == PATIENCE + 1
    assert [name for name in order if name[0] == "c"] == [guest.name for guest in guests]


def test_the_lowest_class_is_served_while_two_others_never_end() -> None:
    line = line_of(*many("n", 200), *many("c", 200, CRITICAL), *many("b", 50, BACKGROUND))
    first = served(line, 100)
    share = {kind: sum(name[0] == kind for name in first) for kind in "cnb"}
    assert share["c"] > 70
    assert min(share["n"], share["b"]) >= 100 // (PATIENCE + 3)


def test_callers_of_a_class_take_turns() -> None:
    line = line_of(*many("a", 10), *many("b", 3))
    assert served(line, 7) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3"]


def test_turns_are_by_work_and_not_by_number() -> None:
    line = line_of(*many("wide", 6, work=4.0), *many("slim", 24, work=1.0))
    first = served(line, 15)
    assert sum(name.startswith("wide") for name in first) == pytest.approx(15 / 5, abs=1)


def test_who_has_not_asked_for_long_has_nothing_saved_up() -> None:
    line = line_of(*many("a", 20))
    assert len(served(line, 10)) == 10
    for guest in many("b", 10):
        line.add(guest)
    assert sum(name[0] == "b" for name in served(line, 10)) == 5


def test_at_once_is_before_the_others_of_its_class() -> None:
    line = line_of(Guest("n"), Guest("c", CRITICAL))
    line.add(Guest("first"), at_once=True)
    line.add(Guest("second"), at_once=True)
    assert served(line) == ["c", "first", "second", "n"]


def test_what_a_caller_gave_up_is_not_held_against_it() -> None:
    gone, *_ = given = many("a", 6)
    line = line_of(*given)
    served(line, 0)
    line.leave([gone, *given[1:5]])
    line.add(Guest("b0", caller="b"))
    assert [guest.name for guest in line] == ["a5", "b0"]


def test_the_work_ahead_is_that_of_better_classes_and_a_fair_part_of_its_own() -> None:
    line = line_of(*many("a", 10), *many("b", 2), *many("c", 3, CRITICAL), *many("d", 4, BACKGROUND))
    assert line.ahead(CRITICAL, "new", 1.0) == 1.0
    assert line.ahead(NORMAL, "a", 1.0) == 3 + 10 + 2
    assert line.ahead(NORMAL, "b", 1.0) == 3 + 2 + 3
    assert line.ahead(NORMAL, "new", 1.0) == 3 + 1 + 1
    assert line.ahead(BACKGROUND, "d", 1.0) == 3 + 12 + 4
    assert line_of().ahead(NORMAL) == 0.0


def test_the_newest_of_the_least_class_goes_for_a_better_one() -> None:
    line = line_of(*many("n", 2), *many("b", 2, BACKGROUND))
    assert [guest.name for guest in line.displaced(CRITICAL, "x", 1.0, 1.0)] == ["b1"]
    assert [guest.name for guest in line.displaced(CRITICAL, "x", 3.0, 3.0)] == ["b1", "b0", "n1"]
    assert [guest.name for guest in line.displaced(NORMAL, "n", 1.0, 1.0)] == ["b1"]
    assert line.displaced(BACKGROUND, "b", 1.0, 1.0) == []


def test_nobody_goes_where_that_would_not_be_enough() -> None:
    line = line_of(*many("c", 5, CRITICAL), Guest("b", BACKGROUND))
    assert line.displaced(NORMAL, "x", 2.0, 2.0) == []
    assert len(line) == 6


def test_who_was_passed_over_and_forgotten_may_still_leave() -> None:
    line: Line[Guest] = Line()
    over, others = Guest("b", caller="b"), [Guest(f"c{number}", caller="c") for number in range(4)]
    for guest in (over, *others):
        line.add(guest)
    for guest in others[:3]:  # of another kind, so that they are taken before it
        line.take([guest])
    for number in range(100):
        guest = Guest("x", caller=str(number))
        line.add(guest)
        line.take([guest])
    line.leave([over])
    assert served(line) == ["c3"]


def test_finding_who_has_to_go_takes_one_look_at_each() -> None:
    class Counted(str):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return str.__eq__(self, str(other))

        __hash__ = str.__hash__

    line = line_of(*(Guest("n", caller=Counted(number)) for number in range(200)), Guest("m", caller="0"))
    Counted.looks = 0
    assert len(line.displaced(NORMAL, "x", 1.0, 1.0)) == 1
    assert Counted.looks < 1000


def test_who_has_most_gives_way_to_who_has_less_until_they_are_even() -> None:
    line = line_of(*many("a", 10))
    room = 10
    for at in range(10):
        going = line.displaced(NORMAL, "b", 1.0, len(line) + 1 - room)
        if not going:
            break
        line.leave(going)
        line.add(Guest(f"b{at}", caller="b"))
    assert sum(guest.caller == "b" for guest in line) == 5
    assert [guest.name for guest in line if guest.caller == "a"] == [f"a{at}" for at in range(5)]


class Lines(RuleBasedStateMachine):
    """A line beside a plain list of who is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[Guest] = Line()
        self.inside: list[Guest] = []
        self.came = 0
        self.passed = dict.fromkeys(Priority, 0)

    @rule(
        priority=st.sampled_from(list(Priority)),
        caller=st.sampled_from("abc"),
        work=st.integers(1, 4),
        at_once=st.booleans(),
    )
    def add(self, priority: Priority, caller: str, work: int, at_once: bool) -> None:
        self.came += 1
        guest = Guest(f"{self.came:05}", priority, caller, float(work))
        self.line.add(guest, at_once=at_once)
        self.inside.append(guest)

    @rule(company=st.integers(0, 3))
    def take(self, company: int) -> None:
        batch = list(islice(self.line, company + 1))
        if not batch:
            return
        kind = batch[0].priority
        waiting = {guest.priority for guest in self.inside}
        overdue = [p for p in Priority if p in waiting and self.passed[p] >= PATIENCE]
        assert kind is (overdue or [p for p in Priority if p in waiting])[0]
        self.line.take(batch)
        self.inside = [guest for guest in self.inside if guest not in batch]
        left = {guest.priority for guest in self.inside}
        order = list(Priority)
        for other in Priority:
            if other is kind or other not in left:
                self.passed[other] = 0
            elif order.index(other) > order.index(kind):
                self.passed[other] += 1

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if not self.inside:
            return
        gone = data.draw(st.lists(st.sampled_from(self.inside), unique=True))
        self.line.leave(gone)
        self.inside = [guest for guest in self.inside if guest not in gone]
        for priority in set(Priority) - {guest.priority for guest in self.inside}:
            self.passed[priority] = 0

    @rule(
        priority=st.sampled_from(list(Priority)),
        caller=st.sampled_from("abcd"),
        work=st.integers(1, 3),
        needed=st.integers(1, 6),
    )
    def displace(self, priority: Priority, caller: str, work: int, needed: int) -> None:
        before = {c: self.work_of(priority, c) for c in "abcd"}
        going = self.line.displaced(priority, caller, float(work), float(needed))
        order = list(Priority)
        assert all(order.index(guest.priority) >= order.index(priority) for guest in going)
        assert not going or sum(guest.work for guest in going) >= needed
        for guest in going:
            if guest.priority is priority:
                assert guest.caller != caller
                assert before[guest.caller] > before[caller] + work
        self.line.leave(going)
        self.inside = [guest for guest in self.inside if guest not in going]
        for other in set(Priority) - {guest.priority for guest in self.inside}:
            self.passed[other] = 0

    def work_of(self, priority: Priority, caller: str) -> float:
        return sum(g.work for g in self.inside if g.priority is priority and g.caller == caller)

    @invariant()
    def everybody_is_there_once(self) -> None:
        assert sorted(g.name for g in self.line) == sorted(g.name for g in self.inside)
        assert len(self.line) == len(self.inside)
        assert bool(self.line) == bool(self.inside)
        assert self.line.work == sum(guest.work for guest in self.inside)
        for priority in Priority:
            assert self.line.count(priority) == sum(g.priority is priority for g in self.inside)

    @invariant()
    def ones_own_stay_in_order(self) -> None:
        for priority in Priority:
            for caller in "abc":
                own = [
                    g.name for g in self.line if g.priority is priority and g.caller == caller and g.tag >= 0
                ]
                assert own == sorted(own)

    @invariant()
    def what_is_ahead_is_no_more_than_what_is_there(self) -> None:
        total = 0.0
        for priority in Priority:
            own = sum(guest.work for guest in self.inside if guest.priority is priority)
            for caller in "abcd":
                assert total <= self.line.ahead(priority, caller, 1.0) <= total + own
            total += own


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
