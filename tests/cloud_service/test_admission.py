"""Who may wait at the cloud, with a line that the test fills and a clock that it turns."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_service.admission import REASONS, Admission
from cloud_service.waiter import Batched, Waiter
from inference_core.batch_cost import BatchCost
from inference_core.concurrency import Limit
from inference_core.errors import DeadlineExceeded, Overloaded
from inference_core.line import Line
from inference_core.priority import Priority

CRITICAL, NORMAL, BACKGROUND = Priority.CRITICAL, Priority.NORMAL, Priority.BACKGROUND
RUN_S = 0.010
NEVER = float("inf")


class Door:
    """An admission to a model whose runs take ten milliseconds a sample."""

    def __init__(self, *, limit: Limit | None, max_queue: int = 8) -> None:
        self.now = 0.0
        self.shed: Counter[tuple[Priority, str]] = Counter()
        self.line: Line[Waiter] = Line()
        cost = BatchCost(lambda: self.now)
        for _ in range(100):
            cost.observe(1, RUN_S)
        self.admission = Admission(
            self.line, cost, max_queue=max_queue, max_batch_size=4, clock=lambda: self.now,
            limit=limit, on_shed=lambda priority, why: self.shed.update([(priority, why)]),
        )  # fmt: skip

    def come(
        self, rows: int = 1, deadline: float = NEVER, priority: Priority = NORMAL, caller: str = ""
    ) -> Waiter:
        """One that is let in and waits."""
        going = self.admission.let_in(rows, deadline, priority, caller)
        self.line.leave(going)
        future: asyncio.Future[Batched] = asyncio.Future(loop=LOOP)
        waiter = Waiter({}, rows, deadline, self.now, future, priority, caller)
        self.line.add(waiter)
        return waiter


LOOP = asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def _close_the_loop() -> Iterator[None]:
    yield
    LOOP.close()


def test_who_waits_behind_a_run_and_others_is_refused_where_that_makes_it_late() -> None:
    door = Door(limit=Limit(1, 100))
    door.admission.began(1, 0.0)
    door.come()
    door.come(priority=CRITICAL)
    with pytest.raises(Overloaded) as caught:  # a run, two that wait, its own: 40 ms
        door.come(deadline=0.039)
    assert caught.value.why == "deadline"
    door.come(deadline=0.060)
    door.come(deadline=0.060, priority=CRITICAL)
    assert door.shed == {(NORMAL, "deadline"): 1}


def test_nobody_waits_for_a_run_of_which_nothing_has_been_seen_lately() -> None:
    door = Door(limit=Limit(1, 100))
    door.admission.began(1, 0.0)
    door.now = 5.0
    door.come()
    door.come(deadline=5.001)


def test_a_run_of_its_own_that_does_not_fit_is_its_deadlines_matter() -> None:
    door = Door(limit=Limit(1, 100))
    with pytest.raises(DeadlineExceeded):
        door.come(deadline=0.009)
    assert not door.shed


def test_without_the_limit_nobody_is_refused_for_the_wait() -> None:
    door = Door(limit=None)
    door.admission.began(1, 0.0)
    for _ in range(8):
        door.come(deadline=0.011)
    assert door.admission.limit == 12
    with pytest.raises(Overloaded, match="8 samples are waiting, the limit is 8"):
        door.come()
    assert door.shed == {(NORMAL, "full"): 1}


def test_an_empty_line_takes_whatever_fits_a_run() -> None:
    door = Door(limit=Limit(1, 1), max_queue=1)
    door.come(rows=4)
    with pytest.raises(Overloaded):
        door.come()


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(1, 4),
            st.sampled_from(list(Priority)),
            st.sampled_from(["a", "b", "c"]),
            st.none() | st.floats(0, 1),
        ),
        max_size=40,
    ),
    max_queue=st.integers(4, 20),
    limit=st.none() | st.integers(1, 30),
)
def test_there_is_never_more_than_there_is_room_for(
    calls: list[tuple[int, Priority, str, float | None]], max_queue: int, limit: int | None
) -> None:
    door = Door(limit=None if limit is None else Limit(1, limit), max_queue=max_queue)
    door.admission.began(1, 0.0)
    refused = 0
    for rows, priority, caller, deadline in calls:
        before = door.line.work
        try:
            door.come(rows, NEVER if deadline is None else deadline, priority, caller)
        except (Overloaded, DeadlineExceeded) as error:
            refused += isinstance(error, Overloaded)
            assert door.line.work == before, "nobody goes for one who is refused"
        assert door.line.work <= max(max_queue, 4)
    assert door.shed.total() == refused
    assert {why for _, why in door.shed} <= set(REASONS)
