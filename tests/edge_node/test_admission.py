"""Who is let in at the edge: by room, by the limit that late answers make, and by the wait foreseen."""

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_node.admission import REASONS, Admission, Place, create_limit
from edge_node.model_slot import LoadedModel, load_models
from edge_node.preferences import Wishes
from edge_node.request import Ask
from edge_node.runner import Runner
from edge_node.settings import Settings
from edge_node.waiting import Timed
from inference_core.concurrency import Limit
from inference_core.errors import Overloaded
from inference_core.priority import Priority
from tests.bundles import write_bundle

CRITICAL, NORMAL, BACKGROUND = Priority.CRITICAL, Priority.NORMAL, Priority.BACKGROUND
RUN_S = 0.010
SAMPLE = np.zeros((1, 3), np.float32)


class Crowd(Runner):
    """A runner before which so many seconds of work wait in each class, and so many who can be sent away."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        super().__init__(executor, workers=1, clock=clock)
        self.seconds = dict.fromkeys(Priority, 0.0)
        self.lower = 0

    def wait_s(self, model: Timed, priority: Priority) -> float:
        order = list(Priority)
        return sum(self.seconds[other] for other in order[: order.index(priority) + 1])

    def displace(self, priority: Priority) -> bool:
        self.lower -= 1
        return self.lower >= 0


class Door:
    """An admission in front of a crowd, on a clock that the test turns."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        most: int = 10,
        limit: Limit | None = None,
        lag_s: float = 0.0,
        reserve_s: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.model = model
        self.shed: Counter[tuple[Priority, str]] = Counter()
        self.crowd = Crowd(ThreadPoolExecutor(1), lambda: self.now)
        self.admission = Admission(
            self.crowd,
            max_inflight=most,
            limit=limit,
            clock=lambda: self.now,
            on_shed=lambda priority, why: self.shed.update([(priority, why)]),
            lag=lambda: lag_s,
            reserve_s=reserve_s,
        )

    def ask(self, deadline_ms: int = 200, priority: Priority | None = None) -> Ask:
        wants = Wishes(deadline_ms=deadline_ms, priority=priority)
        return Ask(self.model, SAMPLE, self.now, wants=wants)

    def admit(self, ask: Ask, count: int = 1, *, goes_up: bool = False) -> Place:
        return self.admission.admit(ask, count, goes_up=goes_up)

    def refusal(self, ask: Ask, count: int = 1, *, goes_up: bool = False) -> Overloaded:
        with pytest.raises(Overloaded) as caught:
            self.admit(ask, count, goes_up=goes_up)
        return caught.value


def given(**changes: Any) -> Settings:
    """The defaults, but for these."""
    return Settings(**changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose runs take ten milliseconds, by what is known of them."""
    folder: Path = write_bundle(tmp_path_factory.mktemp("bundle") / "colors")
    (made,) = load_models(given(bundles=(folder,), max_batch=1))
    for _ in range(300):
        made.edge.cost.observe(1, RUN_S)
    return replace(made, edge=replace(made.edge, inline=False))


@pytest.fixture
def door(model: LoadedModel) -> Door:
    return Door(model, limit=Limit(1, 10))


def test_an_idle_node_lets_everyone_in_who_fits(door: Door) -> None:
    for _ in range(10):
        assert door.admit(door.ask()) == Place(0.2)
    assert door.refusal(door.ask()).why == "full"
    door.admission.leave(10)
    assert door.admission.inflight == 0
    assert door.admit(door.ask(deadline_ms=1)).due == 0.001  # late for its own run alone: it is let in


@pytest.mark.parametrize(("deadline_ms", "due"), [(200, 0.188), (40, 0.03)])
def test_what_an_answer_takes_to_be_sent_is_kept_back(
    model: LoadedModel, deadline_ms: int, due: float
) -> None:
    """The loop's lag counts too; and a quarter of the time is the most."""
    door = Door(model, limit=Limit(1, 10), lag_s=0.002, reserve_s=0.01)
    assert door.admit(door.ask(deadline_ms=deadline_ms)).due == pytest.approx(due)
    door.crowd.seconds[NORMAL] = 0.9 * (due - 0.01)  # with a tenth more and the run it would end just then
    assert door.admit(door.ask(deadline_ms=deadline_ms)).due == pytest.approx(due)
    door.crowd.seconds[NORMAL] = 0.92 * (due - 0.01)
    assert door.refusal(door.ask(deadline_ms=deadline_ms)).why == "deadline"


def test_all_samples_of_a_request_or_none(door: Door) -> None:
    door.admit(door.ask(), 7)
    assert door.refusal(door.ask(), 4).why == "full"
    door.admit(door.ask(), 3)
    assert door.admission.inflight == 10


def test_who_would_be_late_for_the_wait_is_refused(door: Door) -> None:
    door.crowd.seconds[NORMAL] = 0.3
    error = door.refusal(door.ask(deadline_ms=200))
    assert error.why == "deadline"
    assert error.retry_after_s == pytest.approx(0.33)
    assert str(error) == "deadline_ms: 200 ms are left, an answer would take 340 ms"
    assert door.admit(door.ask(deadline_ms=400)) == Place(0.4, 0.3)
    assert door.admit(door.ask(deadline_ms=200, priority=CRITICAL)).foreseen_s == 0.0
    assert door.admission.inflight == 2


def test_the_time_that_has_passed_counts(door: Door) -> None:
    door.crowd.seconds[NORMAL] = 0.1
    ask = door.ask(deadline_ms=200)
    door.now = 0.05
    assert door.admit(ask).due == 0.2
    door.now = 0.09
    assert door.refusal(ask).why == "deadline"


def test_whose_own_runs_do_not_fit_is_not_told_to_come_again(door: Door) -> None:
    door.crowd.seconds[NORMAL] = 0.02
    assert door.admit(door.ask(deadline_ms=50), 8) == Place(math.inf)
    assert door.refusal(door.ask(deadline_ms=20), 2).why == "deadline"


def test_who_goes_to_the_cloud_first_does_not_wait_here(door: Door) -> None:
    door.crowd.seconds[NORMAL] = 10.0
    assert door.admit(door.ask(), goes_up=True) == Place(0.2)


def test_a_better_one_is_let_in_where_another_gives_way(door: Door) -> None:
    door.admit(door.ask(), 10)
    door.crowd.lower = 1
    door.admit(door.ask(priority=CRITICAL))
    assert door.refusal(door.ask(priority=CRITICAL)).why == "full"
    assert door.admission.inflight == 11  # until who gave way has left
    door.crowd.lower = 5
    assert door.refusal(door.ask(priority=CRITICAL), 2).why == "full"


def lower(door: Door) -> None:
    """Let answers be late until the limit is at its least."""
    for _ in range(100):
        door.now += 0.001
        ask = door.ask()
        door.now += 0.001
        door.admission.answered(ask, Place(), 0.0, 0.5)
    assert door.admission.limit == 1


def test_late_answers_let_fewer_in_and_those_in_time_more(door: Door) -> None:
    lower(door)
    door.admit(door.ask())
    assert door.refusal(door.ask()).why == "limit"
    for _ in range(30):
        door.admission.answered(door.ask(), Place(), 0.0, 0.1)
    assert door.admission.limit > 1
    door.admit(door.ask())


def test_a_quiet_time_lets_everyone_in_again(door: Door) -> None:
    lower(door)
    door.now += 5.0
    assert door.admission.limit == 10


def test_the_time_at_the_cloud_says_nothing_of_this_node(door: Door) -> None:
    lower(door)
    door.admit(door.ask(), goes_up=True)
    door.admission.away += 1
    door.admit(door.ask())  # one is at the cloud, none is at work here
    assert door.refusal(door.ask()).why == "limit"


def test_a_loop_that_comes_late_makes_answers_late(model: LoadedModel) -> None:
    door = Door(model, limit=Limit(1, 10), lag_s=0.5)
    door.admission.answered(door.ask(), Place(), 0.0, 0.01)
    assert door.admission.limit == 9


def test_waits_are_taken_as_they_have_been(door: Door) -> None:
    door.crowd.seconds[NORMAL] = 0.1
    for _ in range(50):
        door.admission.answered(door.ask(), Place(1.0, 0.1), 0.19, 0.1)
    assert door.refusal(door.ask()).why == "deadline"
    assert door.admit(door.ask(priority=BACKGROUND)).foreseen_s == 0.1  # each class by its own waits
    for _ in range(50):
        door.admission.answered(door.ask(), Place(1.0, 0.1), 0.1, 0.1)
    door.admit(door.ask())


def test_what_is_turned_away_is_counted(door: Door) -> None:
    door.admission.refused(door.ask(priority=BACKGROUND), Overloaded("no"))
    door.admission.refused(door.ask(), Overloaded("no", 1.0, "expired"), Place(0.2))
    assert door.shed == {(BACKGROUND, "full"): 1, (NORMAL, "expired"): 1}


def test_without_the_limit_only_room_counts(model: LoadedModel) -> None:
    door = Door(model, most=3)
    door.crowd.seconds[NORMAL] = 10.0
    assert [door.admit(door.ask()) for _ in range(3)] == [Place(math.inf)] * 3
    door.admission.answered(door.ask(), Place(), 9.0, 9.0)
    assert door.admission.limit == 3
    assert door.refusal(door.ask()).why == "full"


@pytest.mark.parametrize(("adaptive", "workers", "most"), [(True, 2, 64), (False, 2, 64), (True, 8, 3)])
def test_the_limit_is_the_settings(adaptive: bool, workers: int, most: int) -> None:
    made = create_limit(given(adaptive_limit=adaptive, workers=workers, max_inflight=most))
    assert (made is not None) is adaptive
    assert made is None or made.value(0.0) == most


class Admissions(RuleBasedStateMachine):
    """Requests of all kinds that come, are answered, or are too late."""

    model: LoadedModel

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[tuple[Ask, Place, int]] = []

    @initialize(most=st.integers(1, 20))
    def begin(self, most: int) -> None:
        self.most = most
        self.door = Door(self.model, most=most, limit=Limit(1, most))

    @rule(seconds=st.floats(0, 0.5), priority=st.sampled_from(list(Priority)))
    def crowd(self, seconds: float, priority: Priority) -> None:
        self.door.crowd.seconds[priority] = seconds

    @rule(
        deadline_ms=st.integers(1, 1000),
        priority=st.sampled_from([None, *Priority]),
        count=st.integers(1, 4),
        goes_up=st.booleans(),
    )
    def come(self, deadline_ms: int, priority: Priority | None, count: int, goes_up: bool) -> None:
        door, ask = self.door, self.door.ask(deadline_ms, priority)
        inflight, wait_s = door.admission.inflight, door.crowd.wait_s(self.model.edge, priority or NORMAL)
        try:
            place = door.admit(ask, count, goes_up=goes_up)
        except Overloaded as error:
            self.refused(error, idle=inflight + count <= door.admission.limit and not wait_s)
            assert door.admission.inflight == inflight
        else:
            assert inflight + count <= self.most
            if not goes_up and not math.isinf(place.due):
                assert wait_s <= deadline_ms / 1000
            self.inside.append((ask, place, count))

    def refused(self, error: Overloaded, idle: bool) -> None:
        assert not idle, "an idle node refuses nobody"
        assert error.why in REASONS
        assert error.retry_after_s > 0

    @precondition(lambda self: self.inside)
    @rule(at=st.integers(0, 100), seconds=st.floats(0, 1), expired=st.booleans())
    def go(self, at: int, seconds: float, expired: bool) -> None:
        ask, place, count = self.inside.pop(at % len(self.inside))
        self.door.now += seconds / 10
        if expired:
            self.door.admission.refused(ask, Overloaded("late", 1.0, "expired"), place)
        else:
            self.door.admission.answered(ask, place, seconds, seconds)
        self.door.admission.leave(count)

    @invariant()
    def what_is_inside_is_counted(self) -> None:
        if hasattr(self, "door"):
            assert self.door.admission.inflight == sum(count for *_, count in self.inside)
            assert 1 <= self.door.admission.limit <= self.most


def test_everything_at_once(model: LoadedModel) -> None:
    class Own(Admissions):
        pass

    Own.model = model
    run_state_machine_as_test(Own, settings=settings(max_examples=60, deadline=None))
