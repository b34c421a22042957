"""The batcher on a real engine that a test can hold, and a clock that it turns by hand."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cloud_service.batcher import Batcher
from cloud_service.waiter import Batched
from inference_core.concurrency import Limit
from inference_core.engine import Engine
from inference_core.errors import DeadlineExceeded, InvalidInput, ModelError, Overloaded
from inference_core.line import PATIENCE
from inference_core.priority import Priority
from inference_core.tensors import Tensors

pytestmark = pytest.mark.anyio

NEVER = float("inf")
PATIENCE_S = 30.0
CRITICAL, NORMAL, BACKGROUND = Priority.CRITICAL, Priority.NORMAL, Priority.BACKGROUND
Change = Callable[[Tensors], Any]


def _doubler() -> bytes:
    """`y = x + x` on float32 `[n, m]`, both axes free."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubler", [x], [y])
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(model.SerializeToString())


DOUBLER = _doubler()


class HeldEngine(Engine):
    """A doubler whose runs each wait for a permit. It keeps what it was given."""

    def __init__(self, *, held: bool) -> None:
        super().__init__(DOUBLER, name="doubler")
        self.held = held
        self.given: list[NDArray[Any]] = []
        self.change: Change | None = None
        self._began = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def compute(self, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        self.given.append(inputs["x"])
        self._began.release()
        if self.held:
            assert self._permits.acquire(timeout=PATIENCE_S)
        outputs = super().compute(inputs)
        return outputs if self.change is None else self.change(outputs)

    def let(self, runs: int = 1) -> None:
        """Let this many runs end."""
        for _ in range(runs):
            self._permits.release()

    async def began(self) -> None:
        """Wait until one more run has begun."""
        assert await asyncio.to_thread(self._began.acquire, timeout=PATIENCE_S)

    @property
    def rows(self) -> list[list[float]]:
        """For each run, the first value of each sample."""
        return [[float(row[0]) for row in given] for given in self.given]


class Rig:
    """A batcher and everything around it."""

    def __init__(self, executor: ThreadPoolExecutor, *, held: bool, **changes: Any) -> None:
        self.now = 0.0
        self.ran: list[int] = []
        self.engine = HeldEngine(held=held)
        options: dict[str, Any] = {"max_batch_size": 4, "window_s": 0.0, "max_queue": 100} | changes
        options.setdefault("clock", lambda: self.now)
        self.batcher = Batcher(self.engine, executor, on_run=self.ran.append, **options)

    def submit(
        self, *values: float, width: int = 1, deadline: float = NEVER, **who: Any
    ) -> asyncio.Task[Batched]:
        """A call with one sample for each value, `width` times that value; `who` is its class and caller."""
        inputs: Tensors = {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}
        return asyncio.create_task(self.batcher.submit(inputs, deadline, **who))

    async def busy(self) -> asyncio.Task[Batched]:
        """A call whose run has begun and is held: what comes now gathers behind it."""
        first = self.submit(-1.0)
        await self.engine.began()
        return first

    async def queued(self, samples: int) -> None:
        """Turn the loop until this many samples wait: tasks begin only then."""
        async with asyncio.timeout(PATIENCE_S):
            while self.batcher.depth != samples:  # noqa: ASYNC110 - a number that changes, not an event
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def rig(*, held: bool = True, **changes: Any) -> AsyncIterator[Rig]:
    with ThreadPoolExecutor(1) as executor:
        made = Rig(executor, held=held, **changes)
        try:
            yield made
        finally:
            made.engine.let(1000)
            await made.batcher.close()


async def values(task: asyncio.Task[Batched]) -> list[float]:
    """What the engine made of each of the caller's samples, halved again."""
    batched = await task
    return [float(row[0]) / 2 for row in batched.outputs["y"]]


async def test_a_lone_call_runs_at_once() -> None:
    async with rig(held=False) as r:
        assert await values(r.submit(7.0)) == [7.0]
        assert r.ran == [1]


async def test_runs_that_ended_well_are_told_with_their_seconds() -> None:
    told: list[tuple[int, float]] = []
    clock = iter(range(1000))
    async with rig(
        held=False,
        on_ran=lambda rows, seconds: told.append((rows, seconds)),
        clock=lambda: float(next(clock)),
    ) as r:
        await values(r.submit(1.0, 2.0))
        r.engine.change = lambda outputs: {name: array[:0] for name, array in outputs.items()}
        with pytest.raises(ModelError):
            await values(r.submit(3.0))
        assert [rows for rows, _ in told] == [2]
        assert told[0][1] > 0
        assert r.ran == [2, 1]


async def test_calls_that_come_during_a_run_share_the_next() -> None:
    async with rig() as r:
        first = await r.busy()
        others = [r.submit(1.0), r.submit(2.0, 3.0)]
        await r.queued(3)
        r.engine.let(2)
        assert await values(first) == [-1.0]
        assert [await values(other) for other in others] == [[1.0], [2.0, 3.0]]
        assert r.engine.rows == [[-1.0], [1.0, 2.0, 3.0]]


async def test_one_caller_that_leaves_mid_run_does_not_harm_the_others() -> None:
    async with rig() as r:
        await r.busy()
        a, b, c = r.submit(1.0), r.submit(2.0), r.submit(3.0)
        await r.queued(3)
        r.engine.let()
        await r.engine.began()
        b.cancel()
        with pytest.raises(asyncio.CancelledError):
            await b
        r.engine.let()
        assert [await values(a), await values(c)] == [[1.0], [3.0]]
        assert r.engine.rows[1] == [1.0, 2.0, 3.0]


async def test_the_first_caller_of_a_run_may_leave_too() -> None:
    async with rig() as r:
        await r.busy()
        a, b = r.submit(1.0), r.submit(2.0, 3.0)
        await r.queued(3)
        r.engine.let()
        await r.engine.began()
        a.cancel()
        r.engine.let()
        assert await values(b) == [2.0, 3.0]


async def test_all_callers_leave_mid_run_and_the_next_is_answered() -> None:
    async with rig() as r:
        calls = [await r.busy()]
        for call in calls:
            call.cancel()
        r.engine.let(2)
        assert await values(r.submit(5.0)) == [5.0]


async def test_all_callers_leave_while_queued_and_nothing_runs() -> None:
    async with rig() as r:
        first = await r.busy()
        waiting = [r.submit(1.0), r.submit(2.0)]
        await r.queued(2)
        for call in waiting:
            call.cancel()
        await r.queued(0)
        r.engine.let(2)
        await first
        assert await values(r.submit(5.0)) == [5.0]
        assert r.engine.rows == [[-1.0], [5.0]]


async def test_a_call_that_leaves_while_queued_is_never_run() -> None:
    async with rig() as r:
        await r.busy()
        a, b, c = r.submit(1.0), r.submit(2.0), r.submit(3.0)
        await r.queued(3)
        b.cancel()
        await r.queued(2)
        r.engine.let(2)
        assert [await values(a), await values(c)] == [[1.0], [3.0]]
        assert r.engine.rows[1] == [1.0, 3.0]


async def test_a_call_that_leaves_while_waiting_for_company_is_never_run() -> None:
    async with rig(held=False, window_s=1000.0) as r:
        alone = r.submit(1.0)
        await r.queued(1)
        alone.cancel()
        await r.queued(0)
        r.now = 2000.0
        full = r.submit(2.0, 3.0, 4.0, 5.0)
        assert await values(full) == [2.0, 3.0, 4.0, 5.0]
        assert r.engine.rows == [[2.0, 3.0, 4.0, 5.0]]


def _fail(_: Tensors) -> Tensors:
    raise ModelError("the run failed")


async def test_whose_values_the_model_cannot_take_spoils_it_for_nobody() -> None:
    def refuse(outputs: Tensors) -> Tensors:
        if 6.0 in outputs["y"]:
            raise InvalidInput("not 3")
        return outputs

    async with rig(held=True) as r:
        first = await r.busy()
        r.engine.change = refuse
        tasks = [r.submit(value) for value in (1.0, 3.0, 4.0)]
        await r.queued(3)
        r.engine.let(5)
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [isinstance(answer, InvalidInput) for answer in answers] == [False, False, True, False]
        assert r.engine.rows == [[-1.0], [1.0, 3.0, 4.0], [1.0], [3.0], [4.0]]


async def test_who_has_left_gets_no_run_of_its_own() -> None:
    def refuse(outputs: Tensors) -> Tensors:
        if len(outputs["y"]) > 1:
            raise InvalidInput("not together")
        return outputs

    async with rig(held=True) as r:
        first = await r.busy()
        r.engine.change = refuse
        tasks = [r.submit(value) for value in (1.0, 3.0, 4.0)]
        await r.queued(3)
        r.engine.let(1)
        await first
        await r.engine.began()
        tasks[1].cancel()
        r.engine.let(4)
        await asyncio.wait(tasks)
        assert r.engine.rows == [[-1.0], [1.0, 3.0, 4.0], [1.0], [4.0]]


async def test_one_that_is_retired_answers_whoever_has_taken_it_and_then_ends() -> None:
    async with rig(held=True) as r:
        first = await r.busy()
        waiting = r.submit(1.0)
        await r.queued(1)
        r.batcher.retire()
        r.engine.let(2)
        assert [float(b.outputs["y"][0, 0]) for b in await asyncio.gather(first, waiting)] == [-2.0, 2.0]
        r.engine.let(1)
        assert float((await r.submit(2.0)).outputs["y"][0, 0]) == 4.0
        async with asyncio.timeout(PATIENCE_S):
            while any("batcher" in task.get_name() for task in asyncio.all_tasks()):  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_failed_run_fails_exactly_its_callers() -> None:
    async with rig() as r:
        first = await r.busy()
        failing = [r.submit(1.0), r.submit(2.0)]
        await r.queued(2)
        r.engine.let()
        await r.engine.began()
        r.engine.change = _fail
        after = r.submit(3.0)
        await r.queued(1)
        r.engine.let()
        for call in failing:
            with pytest.raises(ModelError, match="the run failed"):
                await call
        r.engine.change = None
        r.engine.let()
        assert [await values(first), await values(after)] == [[-1.0], [3.0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda outputs: {"y": outputs["y"][:-1]},
        lambda outputs: {"y": np.concatenate([outputs["y"], outputs["y"]])},
        lambda outputs: {"y": outputs["y"].sum()},
        lambda outputs: {"y": outputs["y"], "z": outputs["y"][:0]},
    ],
    ids=["too few", "too many", "scalar", "second output"],
)
async def test_wrong_number_of_rows_is_an_error_and_the_next_run_works(change: Change) -> None:
    async with rig(held=False) as r:
        r.engine.change = change
        with pytest.raises(ModelError, match="has not 2 rows"):
            await r.submit(1.0, 2.0)
        r.engine.change = None
        assert await values(r.submit(3.0)) == [3.0]


async def test_a_bug_in_the_engine_reaches_its_caller_only() -> None:
    async with rig(held=False) as r:
        r.engine.change = lambda _: None
        with pytest.raises(AttributeError):
            await r.submit(1.0)
        r.engine.change = None
        assert await values(r.submit(3.0)) == [3.0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros((1, 1), np.float64)}, "datatype must be FP32"),
        ({"x": np.zeros(1, np.float32)}, r"shape must be \[-1, -1\]"),
        ({"x": np.full((1, 1), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((0, 1), np.float32)}, "1 or more samples"),
        ({"z": np.zeros((1, 1), np.float32)}, "unknown input 'z'"),
        ({}, "'x' is missing"),
    ],
)
async def test_malformed_input_is_refused_at_once_and_harms_no_one(inputs: Tensors, message: str) -> None:
    async with rig() as r:
        first = await r.busy()
        good = r.submit(1.0)
        await r.queued(1)
        with pytest.raises(InvalidInput, match=message):
            await r.batcher.submit(inputs, NEVER)
        r.engine.let(2)
        assert [await values(first), await values(good)] == [[-1.0], [1.0]]


async def test_calls_of_another_shape_get_a_run_of_their_own() -> None:
    async with rig() as r:
        await r.busy()
        narrow = [r.submit(1.0), r.submit(3.0)]
        wide = [r.submit(2.0, width=2), r.submit(4.0, width=2)]
        await r.queued(4)
        r.engine.let(3)
        assert [await values(call) for call in (*narrow, *wide)] == [[1.0], [3.0], [2.0], [4.0]]
        assert [given.shape for given in r.engine.given] == [(1, 1), (2, 1), (2, 2)]


async def test_a_full_queue_refuses_at_once() -> None:
    async with rig(max_queue=3) as r:
        first = await r.busy()
        waiting = [r.submit(1.0), r.submit(2.0, 3.0)]
        await r.queued(3)
        with pytest.raises(Overloaded, match="3 samples are waiting, the limit is 3"):
            await r.batcher.submit({"x": np.zeros((1, 1), np.float32)}, NEVER)
        r.engine.let(3)
        assert [await values(call) for call in (first, *waiting)] == [[-1.0], [1.0], [2.0, 3.0]]
        assert await values(r.submit(4.0)) == [4.0]


async def test_a_call_that_leaves_makes_room_in_the_queue() -> None:
    async with rig(max_queue=1) as r:
        await r.busy()
        leaving = r.submit(1.0)
        await r.queued(1)
        leaving.cancel()
        await r.queued(0)
        staying = r.submit(2.0)
        r.engine.let(2)
        assert await values(staying) == [2.0]


async def test_more_samples_than_fit_into_a_run_are_refused() -> None:
    async with rig(held=False) as r:
        with pytest.raises(InvalidInput, match="5 samples in one request, the limit is 4"):
            await r.submit(1.0, 2.0, 3.0, 4.0, 5.0)
        assert await values(r.submit(1.0, 2.0, 3.0, 4.0)) == [1.0, 2.0, 3.0, 4.0]


async def test_close_answers_everyone_and_refuses_newcomers() -> None:
    async with rig(window_s=1000.0) as r:
        r.now = 1.0
        calls = [r.submit(1.0, 2.0, 3.0, 4.0)]
        await r.engine.began()
        calls += [r.submit(5.0), r.submit(6.0)]
        await r.queued(2)
        closing = asyncio.create_task(r.batcher.close())
        r.engine.let(2)
        await closing
        assert all(call.done() for call in calls)
        assert [await values(call) for call in calls] == [[1.0, 2.0, 3.0, 4.0], [5.0], [6.0]]
        with pytest.raises(Overloaded, match="stopping"):
            await r.submit(7.0)
        await r.batcher.close()


async def test_close_ends_the_wait_for_company() -> None:
    async with rig(held=False, window_s=1000.0) as r:
        alone = r.submit(1.0)
        await r.queued(1)
        await r.batcher.close()
        assert await values(alone) == [1.0]


async def test_close_of_a_batcher_that_never_ran() -> None:
    async with rig() as r:
        await r.batcher.close()
        with pytest.raises(Overloaded):
            await r.submit(1.0)


async def test_close_with_a_broken_engine_still_answers_everyone() -> None:
    async with rig() as r:
        r.engine.change = _fail
        calls = [await r.busy(), r.submit(1.0)]
        await r.queued(1)
        closing = asyncio.create_task(r.batcher.close())
        r.engine.let(2)
        await closing
        for call in calls:
            with pytest.raises(ModelError):
                await call


async def test_a_call_whose_deadline_has_passed_is_not_run() -> None:
    async with rig() as r:
        await r.busy()
        late, inside, exact = (
            r.submit(1.0, deadline=5.0),
            r.submit(2.0, deadline=10.1),
            r.submit(3.0, deadline=5),
        )
        await r.queued(3)
        r.now = 5.0
        r.engine.let(2)
        for call in (late, exact):
            with pytest.raises(DeadlineExceeded):
                await call
        assert await values(inside) == [2.0]
        assert r.engine.rows == [[-1.0], [2.0]]


async def test_nothing_runs_when_every_deadline_has_passed() -> None:
    async with rig() as r:
        await r.busy()
        late = [r.submit(1.0, deadline=1.0), r.submit(2.0, deadline=1.0)]
        await r.queued(2)
        r.now = 2.0
        r.engine.let()
        for call in late:
            with pytest.raises(DeadlineExceeded):
                await call
        assert r.ran == [1]


async def test_times_come_from_the_given_clock_and_no_other() -> None:
    # The clock stands still or is turned by hours: no other clock may decide, the wall's least of all.
    async with rig() as r:
        first = await r.busy()
        call = r.submit(1.0, deadline=10_000.0)
        await r.queued(1)
        r.now = 3600.0
        r.engine.let()
        await r.engine.began()
        r.now = 7200.0
        r.engine.let()
        assert (await first).queue_s == 0.0
        assert (await call).queue_s == 3600.0
        assert (await call).infer_s == 3600.0


async def test_a_full_run_does_not_wait_for_the_window() -> None:
    async with rig(held=False, window_s=1000.0) as r:
        calls = [r.submit(1.0), r.submit(2.0, 3.0), r.submit(4.0)]
        assert [await values(call) for call in calls] == [[1.0], [2.0, 3.0], [4.0]]
        assert r.ran == [4]


async def test_newcomers_do_not_prolong_the_wait_of_the_oldest() -> None:
    async with rig(held=False, window_s=0.02) as r:
        oldest = r.submit(1.0)
        await r.queued(1)
        r.now = 0.015
        newcomer = r.submit(2.0)
        await r.queued(2)
        r.now = 0.02
        assert (await oldest).queue_s == 0.02
        assert (await newcomer).queue_s == 0.02 - 0.015
        assert r.ran == [2]


async def test_a_lone_call_waits_the_window_and_no_longer() -> None:
    async with rig(held=False, window_s=0.02, clock=time.monotonic) as r:
        waited = (await r.submit(1.0)).queue_s
        assert 0.02 <= waited < 5.0


async def test_a_wide_call_is_not_overtaken_for_ever() -> None:
    async with rig() as r:
        await r.busy()
        calls = [r.submit(1.0), r.submit(2.0, 3.0, 4.0, 5.0), r.submit(6.0)]
        await r.queued(6)
        r.engine.let(3)
        assert [await values(call) for call in calls] == [[1.0], [2.0, 3.0, 4.0, 5.0], [6.0]]
        assert r.engine.rows == [[-1.0], [1.0, 6.0], [2.0, 3.0, 4.0, 5.0]]


CALLS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.sampled_from(["stay", "leave", "late"])), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(calls=CALLS, max_batch_size=st.integers(4, 6), closing=st.booleans())
async def test_every_caller_gets_its_own_rows(
    calls: list[tuple[int, int, str]], max_batch_size: int, closing: bool
) -> None:
    """Calls of any sizes and shapes behind a busy run: each its own rows, each sample at most once."""
    async with rig(max_batch_size=max_batch_size) as r:
        first = await r.busy()
        tasks: list[tuple[asyncio.Task[Batched], list[float], str]] = []
        for at, (rows, width, fate) in enumerate(calls):
            own = [float(100 * at + row) for row in range(rows)]
            tasks.append((r.submit(*own, width=width, deadline=1.0 if fate == "late" else NEVER), own, fate))
        await r.queued(sum(rows for rows, _, _ in calls))
        r.now = 2.0
        for task, _, fate in tasks:
            if fate == "leave":
                task.cancel()
        await r.queued(sum(rows for rows, _, fate in calls if fate != "leave"))
        end = asyncio.create_task(r.batcher.close()) if closing else None
        r.engine.let(1 + len(calls))
        await first
        for task, own, fate in tasks:
            if fate == "stay":
                assert await values(task) == own
            else:
                with pytest.raises(asyncio.CancelledError if fate == "leave" else DeadlineExceeded):
                    await task
        if end is not None:
            await end
        assert max(r.ran) <= max_batch_size
        assert r.ran == [len(rows) for rows in r.engine.rows]
        ran = sorted(value for rows in r.engine.rows[1:] for value in rows)
        assert ran == sorted(value for _, own, fate in tasks if fate == "stay" for value in own)


async def taught(r: Rig, seconds: Callable[[int], float]) -> None:
    """Runs of one and two samples that take so long, by the rig's clock."""
    for at in range(60):
        n = at % 2 + 1
        r.batcher.cost.observe(n, seconds(n))
    assert r.batcher.cost.told


async def test_samples_go_alone_where_batches_do_not_pay() -> None:
    async with rig() as r:
        await taught(r, lambda n: 0.01 * n**1.5)
        await r.busy()
        calls = [r.submit(1.0), r.submit(2.0), r.submit(3.0)]
        await r.queued(3)
        r.engine.let(4)
        assert [await values(call) for call in calls] == [[1.0], [2.0], [3.0]]
        assert r.engine.rows == [[-1.0], [1.0], [2.0], [3.0]]


async def test_samples_go_together_where_that_pays() -> None:
    async with rig() as r:
        await taught(r, lambda n: 0.01 + 0.001 * n)
        await r.busy()
        calls = [r.submit(float(at)) for at in range(4)]
        await r.queued(4)
        r.engine.let(2)
        assert [await values(call) for call in calls] == [[0.0], [1.0], [2.0], [3.0]]
        assert r.engine.rows[1] == [0.0, 1.0, 2.0, 3.0]


async def test_a_batch_is_no_larger_than_its_most_urgent_caller_can_bear() -> None:
    async with rig() as r:
        await taught(r, lambda n: 0.010 + 0.004 * n)
        await r.busy()
        urgent = r.submit(1.0, deadline=0.019)  # 14 ms alone, 18 in company of one, 22 in company of two
        patient = [r.submit(2.0), r.submit(3.0)]
        await r.queued(3)
        r.engine.let(3)
        assert await values(urgent) == [1.0]
        assert [await values(call) for call in patient] == [[2.0], [3.0]]
        assert r.engine.rows == [[-1.0], [1.0, 2.0], [3.0]]


async def test_a_caller_who_joins_is_not_late_for_the_company_either() -> None:
    async with rig() as r:
        await taught(r, lambda n: 0.010 + 0.004 * n)
        await r.busy()
        patient, urgent = r.submit(1.0, 2.0), r.submit(3.0, deadline=0.019)
        await r.queued(3)
        r.engine.let()
        assert (await asyncio.wait((patient,), timeout=0.05))[0] == set()
        r.now = 0.001
        r.engine.let(2)
        assert await values(patient) == [1.0, 2.0]
        assert await values(urgent) == [3.0]
        assert r.engine.rows == [[-1.0], [1.0, 2.0], [3.0]]


async def test_who_cannot_make_it_even_alone_is_refused_at_once() -> None:
    async with rig() as r:
        await taught(r, lambda n: 0.010 * n)
        await r.busy()
        with pytest.raises(DeadlineExceeded, match="too little time"):
            await r.submit(1.0, deadline=0.009)
        assert r.batcher.depth == 0
        r.engine.let(2)


async def test_what_has_not_been_seen_for_long_refuses_nobody() -> None:
    async with rig(held=False) as r:
        await taught(r, lambda n: 0.010 * n)
        r.now = 5.0
        assert await values(r.submit(1.0, deadline=5.001)) == [1.0]


async def test_short_runs_take_place_at_once_and_long_ones_on_the_thread() -> None:
    async with rig(held=False, inline_s=0.001) as r:
        threads: list[int] = []

        def note(outputs: Tensors) -> Tensors:
            threads.append(threading.get_ident())
            return outputs

        r.engine.change = note
        for seconds, inline in ((0.0005, True), (0.002, False)):
            for _ in range(50):
                r.batcher.cost.observe(1, seconds)
            assert await values(r.submit(7.0)) == [7.0]
            assert (threads[-1] == threading.get_ident()) is inline
        assert r.ran == [1, 1]


async def test_an_inline_run_that_fails_reaches_its_caller_only() -> None:
    async with rig(held=False, inline_s=10.0) as r:
        r.batcher.cost.observe(1, 0.0005)
        r.engine.change = _fail
        with pytest.raises(ModelError, match="the run failed"):
            await r.submit(1.0)
        r.engine.change = lambda outputs: {"y": outputs["y"][:0]}
        with pytest.raises(ModelError, match="has not 1 rows"):
            await r.submit(1.0)
        r.engine.change = None
        assert await values(r.submit(3.0)) == [3.0]


async def test_nothing_runs_inline_beside_a_run_or_before_who_waits() -> None:
    async with rig(inline_s=10.0) as r:
        first = await r.busy()
        r.batcher.cost.observe(1, 0.0005)
        second = r.submit(2.0)
        await r.queued(1)
        r.engine.let(2)
        assert [await values(first), await values(second)] == [[-1.0], [2.0]]


async def in_order(r: Rig, calls: list[asyncio.Task[Batched]]) -> list[float]:
    """The values that are run behind the busy run, one for each run, when all have been answered."""
    await r.queued(len(calls))
    r.engine.let(1 + len(calls))
    await asyncio.gather(*calls)
    return [value for rows in r.engine.rows[1:] for value in rows]


async def test_better_classes_go_first() -> None:
    async with rig(max_batch_size=1) as r:
        await r.busy()
        given = (BACKGROUND, NORMAL, CRITICAL) * 2
        calls = [r.submit(float(at), priority=priority) for at, priority in enumerate(given)]
        assert await in_order(r, calls) == [2.0, 5.0, 1.0, 4.0, 0.0, 3.0]


async def test_lower_classes_fill_a_run_that_has_room() -> None:
    async with rig() as r:
        await r.busy()
        calls = [r.submit(1.0, priority=BACKGROUND), r.submit(2.0, priority=CRITICAL)]
        await r.queued(2)
        r.engine.let(2)
        await asyncio.gather(*calls)
        assert r.engine.rows[1] == [2.0, 1.0]


async def test_the_lowest_class_is_run_while_better_ones_never_end() -> None:
    async with rig(max_batch_size=1) as r:
        await r.busy()
        calls = [r.submit(99.0, priority=BACKGROUND)]
        calls += [r.submit(float(at), priority=CRITICAL) for at in range(2 * PATIENCE)]
        assert (await in_order(r, calls)).index(99.0) == PATIENCE


async def test_callers_share_the_runs_however_many_one_of_them_sends() -> None:
    async with rig(max_batch_size=2) as r:
        await r.busy()
        loud = [r.submit(float(at), caller="loud") for at in range(10)]
        await r.queued(10)
        quiet = [r.submit(100.0 + at, caller="quiet") for at in range(3)]
        ran = await in_order(r, [*loud, *quiet])
        assert [value >= 100 for value in ran[:6]].count(True) == 3
        assert [value for value in ran if value < 100] == [float(at) for at in range(10)]


async def test_a_full_queue_gives_up_the_newest_of_the_least_class() -> None:
    shed: list[tuple[Priority, str]] = []
    async with rig(max_queue=3, on_shed=lambda *what: shed.append(what)) as r:
        await r.busy()
        calls = [r.submit(float(at), priority=p) for at, p in enumerate((NORMAL, BACKGROUND, BACKGROUND))]
        await r.queued(3)
        calls.append(r.submit(3.0, priority=CRITICAL))
        with pytest.raises(Overloaded, match="1 samples were let in instead"):
            await calls.pop(2)
        with pytest.raises(Overloaded, match="3 samples are waiting"):
            await r.submit(4.0, priority=BACKGROUND)
        assert shed == [(BACKGROUND, "displaced"), (BACKGROUND, "full")]
        r.engine.let(2)
        await asyncio.gather(*calls)
        assert r.engine.rows[1] == [3.0, 0.0, 1.0]


async def test_a_full_queue_is_shared_by_the_callers() -> None:
    async with rig(max_queue=4) as r:
        await r.busy()
        loud = [r.submit(float(at), caller="loud") for at in range(4)]
        await r.queued(4)
        quiet = [r.submit(100.0 + at, caller="quiet") for at in range(3)]
        done, _ = await asyncio.wait([*loud, *quiet], timeout=0.05)
        assert done == {loud[2], loud[3], quiet[2]}
        for call in done:
            with pytest.raises(Overloaded):
                await call
        r.engine.let(2)
        assert [await values(call) for call in (*loud[:2], *quiet[:2])] == [[0.0], [1.0], [100.0], [101.0]]


async def test_who_would_be_late_for_the_wait_is_refused_before_anything_is_done() -> None:
    shed: list[tuple[Priority, str]] = []
    async with rig(limit=Limit(1, 100), on_shed=lambda *what: shed.append(what)) as r:
        await taught(r, lambda n: 0.010 * n)
        calls = [await r.busy(), r.submit(1.0), r.submit(2.0)]
        await r.queued(2)
        inputs: Tensors = {"x": np.zeros((1, 1), np.float32)}
        for refuse in (r.batcher.admit, r.batcher.submit):
            with pytest.raises(Overloaded, match="30 ms are left, an answer would take") as caught:
                await asyncio.wait_for(asyncio.ensure_future(_call(refuse, inputs, 0.030)), PATIENCE_S)
            assert caught.value.retry_after_s == pytest.approx(0.03)  # the run, and the two that wait
        calls += [r.submit(3.0, deadline=0.030, priority=CRITICAL), r.submit(4.0, deadline=0.060)]
        await r.queued(4)
        assert shed == [(NORMAL, "deadline")] * 2
        r.engine.let(5)
        assert [await values(call) for call in calls] == [[-1.0], [1.0], [2.0], [3.0], [4.0]]


async def _call(refuse: Callable[..., Any], inputs: Tensors, deadline: float) -> None:
    """What is a coroutine or not, called."""
    made = refuse(inputs, deadline)
    if made is not None:
        await made


async def test_who_is_made_late_by_others_is_told_so_and_not_run() -> None:
    shed: list[tuple[Priority, str]] = []
    async with rig(limit=Limit(1, 100), on_shed=lambda *what: shed.append(what)) as r:
        first = await r.busy()
        made_late, over = r.submit(1.0, deadline=1.05), r.submit(2.0, deadline=0.5)
        await r.queued(2)
        await taught(r, lambda n: 0.1 * n)
        r.now = 1.0
        before = r.batcher.admission.limit
        r.engine.let(1)
        with pytest.raises(Overloaded, match=r"waited 1\.000 s"):
            await made_late
        with pytest.raises(DeadlineExceeded):
            await over
        await first
        assert shed == [(NORMAL, "expired")] * 2
        assert r.batcher.admission.limit < before
        assert r.engine.rows == [[-1.0]]


async def test_an_answer_that_is_late_for_its_own_run_is_nobodys_fault() -> None:
    async with rig(limit=Limit(2, 10), max_queue=10) as r:
        late = r.submit(1.0, deadline=0.5)
        await r.engine.began()
        r.now = 1.0
        r.engine.let()
        await late
        assert r.batcher.admission.limit == 10


async def test_what_waits_and_runs_is_bounded_by_the_limit() -> None:
    limit = Limit(2, 10)
    for at in range(100):
        limit.ended(began=at / 1e6 - 1, now=at / 1e6 - 1 + 1e-7, in_time=False)
    async with rig(limit=limit, max_queue=10) as r:
        calls = [await r.busy(), r.submit(1.0)]
        await r.queued(1)
        with pytest.raises(Overloaded, match="1 samples are waiting, the limit is 1") as caught:
            await r.submit(2.0)
        assert caught.value.why == "limit"
        r.engine.let(2)
        assert [await values(call) for call in calls] == [[-1.0], [1.0]]
