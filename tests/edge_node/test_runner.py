"""The runner on real engines that a test can hold, with a clock that each run moves by what it costs."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_node.runner import Runner
from edge_node.waiting import Run, Timed, Waiting
from inference_core.batch_cost import BatchCost
from inference_core.engine import Engine
from inference_core.errors import InvalidInput, ModelError, NotReady, Overloaded
from inference_core.line import PATIENCE
from inference_core.priority import Priority
from inference_core.tensors import Tensors
from tests.bundles import constant

pytestmark = pytest.mark.anyio

PATIENCE_S = 30.0
CRITICAL, NORMAL, BACKGROUND = Priority.CRITICAL, Priority.NORMAL, Priority.BACKGROUND
BAD = 1.0  # a sample with this value makes its run fail
Cost = Callable[[int], float]


def network(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> bytes:
    """A model from float32 `x` of `[n, m]` to `outputs`, all axes free, of these nodes and y = x + x."""
    nodes = (helper.make_node("Add", ["x", "x"], ["twice"]), *nodes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    weights = [constant("zero", [0.0]), constant("one", [1], np.int64)]
    graph = helper.make_graph(list(nodes), "tiny", [x], made, initializer=weights)
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(model.SerializeToString())


# y = x + x, which fails where a value is 1 or more: two values are made of one.
DOUBLER = network(
    helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
    helper.make_node("Cast", ["most"], ["at"], to=TensorProto.INT64),
    helper.make_node("Add", ["at", "one"], ["size"]),
    helper.make_node("Reshape", ["zero", "size"], ["nothing"]),
    helper.make_node("Add", ["twice", "nothing"], ["y"]),
)
# The same, but ONNX Runtime blames the values: it reads behind the end of a list.
PICKER = network(
    helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
    helper.make_node("Cast", ["most"], ["at"], to=TensorProto.INT64),
    helper.make_node("Gather", ["zero", "at"], ["nothing"]),
    helper.make_node("Add", ["twice", "nothing"], ["y"]),
)
# Outputs that do not have one row for each sample.
HIGHEST = network(helper.make_node("ReduceMax", ["twice"], ["y"], axes=[0]))
COUNT = network(
    helper.make_node("Identity", ["twice"], ["y"]),
    helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
    outputs=("y", "sum"),
)


# What a run of n samples takes, in seconds: much for any and little for each, or the same for each.


def shared(n: int) -> float:
    return 1 + n / 8


def alone(n: int) -> float:
    return 2.0 * n


class Machine:
    """What all engines of a test run on: its time, and who runs when. `held` runs wait for a permit each."""

    def __init__(self, held: bool) -> None:
        self.now = 0.0
        self.held = held
        self.running = self.most_at_a_time = 0
        self.order: list[float] = []
        self.on_run: Callable[[], object] = int
        self._lock = threading.Lock()
        self._began = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def clock(self) -> float:
        return self.now

    def begin(self, inputs: Mapping[str, Any]) -> None:
        with self._lock:
            self.running += 1
            self.most_at_a_time = max(self.most_at_a_time, self.running)
            self.order += [float(row[0]) for row in inputs["x"]]
        self.on_run()
        self._began.release()
        if self.held:
            assert self._permits.acquire(timeout=PATIENCE_S)

    def end(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds
            self.running -= 1

    def let(self, runs: int = 1) -> None:
        """Let this many runs end."""
        for _ in range(runs):
            self._permits.release()

    async def began(self, runs: int = 1) -> None:
        """Wait until so many more runs have begun."""
        for _ in range(runs):
            assert await asyncio.to_thread(self._began.acquire, timeout=PATIENCE_S)


class Watched(Engine):
    """A real engine on that machine; `rows` are the values of the samples of each of its runs."""

    def __init__(self, machine: Machine, cost: Cost, model: bytes) -> None:
        super().__init__(model, name="doubler")
        self.rows: list[list[float]] = []
        self._machine = machine
        self._cost = cost

    def compute(self, inputs: Mapping[str, Any]) -> Tensors:
        self.rows.append([float(row[0]) for row in inputs["x"]])
        self._machine.begin(inputs)
        try:
            return super().compute(inputs)
        finally:
            self._machine.end(self._cost(len(inputs["x"])))


class Model:
    """One served model and what was told of its runs."""

    def __init__(
        self,
        machine: Machine,
        *,
        inline: bool,
        max_batch: int = 4,
        cost: Cost = shared,
        model: bytes = DOUBLER,
        told: bool = True,
    ) -> None:
        self.engine = Watched(machine, cost, model)
        self.cost = BatchCost(machine.clock)
        for samples in (1, max_batch) * 20 if told else (1,):
            self.cost.observe(samples, cost(samples))
        self.ran: list[tuple[int, float]] = []
        self.timed = Timed(
            self.engine, self.cost, max_batch, inline, lambda samples, s: self.ran.append((samples, s))
        )


class Rig:
    """A runner and everything around it."""

    def __init__(self, executor: ThreadPoolExecutor, workers: int, held: bool) -> None:
        self.executor = executor
        self.machine = Machine(held)
        self.runner = Runner(executor, workers=workers, clock=self.machine.clock)
        self.ended: list[float] = []

    def ask(self, model: Model, value: float, width: int = 1, **turn: Any) -> asyncio.Task[Run]:
        """A caller with one sample, `width` times that value; `turn` is what it says of its turn."""

        async def call() -> Run:
            run = await self.runner.run(model.timed, {"x": np.full((1, width), value, np.float32)}, **turn)
            self.ended.append(value)
            return run

        return asyncio.create_task(call())

    async def waiting(self, samples: int) -> None:
        """Turn the loop until this many samples wait."""
        async with asyncio.timeout(PATIENCE_S):
            while self.runner.waiting != samples:  # noqa: ASYNC110 - a number that changes, not an event
                await asyncio.sleep(0)

    async def busy(self, model: Model, value: float = 0.5) -> asyncio.Task[Run]:
        """A call whose run has begun on the pool and is held: what comes now gathers behind it."""
        first = self.ask(model, value)
        await self.machine.began()
        return first


@contextlib.asynccontextmanager
async def rig(*, workers: int = 1, threads: int | None = None, held: bool = False) -> AsyncIterator[Rig]:
    """A rig whose loop had nothing to complain about, and where no one waits at the end."""
    faults: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    try:
        with ThreadPoolExecutor(threads or workers) as executor:
            made = Rig(executor, workers, held)
            try:
                yield made
                made.machine.let(1000)
                await made.waiting(0)  # those who went are still in line until their turn comes
            finally:
                made.machine.let(1000)
    finally:
        loop.set_exception_handler(before)
    assert faults == []


async def value_of(task: asyncio.Task[Run]) -> float:
    """What came out for a caller, halved again."""
    async with asyncio.timeout(PATIENCE_S):
        (row,) = (await task).outputs["y"].tolist()
    return float(row[0]) / 2


async def values(tasks: list[asyncio.Task[Run]]) -> list[float]:
    return [await value_of(task) for task in tasks]


def steps(count: int) -> list[float]:
    """So many different values that float32 has exactly, all good ones."""
    return [at / 256 for at in range(count)]


# ---- on the loop


async def test_a_lone_call_runs_at_once_on_the_loop() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True)
        thread: list[int] = []
        r.machine.on_run = lambda: thread.append(threading.get_ident())
        run = await r.runner.run(model.timed, {"x": np.array([[0.25]], np.float32)})
        assert run.outputs["y"].tolist() == [[0.5]]
        assert (run.queue_s, run.seconds, run.samples) == (0.0, 1.125, 1)
        assert thread == [threading.get_ident()]
        assert model.ran == [(1, 1.125)]


@pytest.mark.parametrize(("seconds", "fewest", "most"), [(2.0, 1, 1), (2**-13, 2, 9)])
async def test_the_loop_reads_between_runs(seconds: float, fewest: int, most: int) -> None:
    """A turn of the loop begins no run when others have taken a millisecond of it; short ones share it."""
    async with rig() as r:
        model = Model(r.machine, inline=True, max_batch=1, cost=lambda n: n * seconds)
        ours, theirs = socket.socketpair()
        reads: list[object] = []
        found: list[int] = []
        r.machine.on_run = lambda: found.append(len(reads))
        loop = asyncio.get_running_loop()
        theirs.send(b"nobody takes it, so that the loop calls whenever it looks")
        loop.add_reader(ours, lambda: reads.append(None))
        try:
            assert await values([r.ask(model, value) for value in steps(40)]) == steps(40)
        finally:
            loop.remove_reader(ours)
            ours.close()
            theirs.close()
        assert len(found) == 40
        # The loop looks at its sockets at the start of a turn, and calls back behind what was due by then:
        # the first two turns are one to who counts so.
        start = found[0]
        assert found.count(start) <= 2 * most
        *turns, _ = Counter(seen for seen in found if seen != start).values()
        assert turns
        assert set(turns) <= set(range(fewest, most + 1))


async def test_who_arrives_while_others_wait_is_behind_them() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True, max_batch=1)
        first = [r.ask(model, value) for value in steps(3)]
        await asyncio.sleep(0)
        later = [r.ask(model, 0.5), r.ask(model, 0.75)]
        await values([*first, *later])
        assert r.machine.order == r.ended == [*steps(3), 0.5, 0.75]


async def test_queue_time_is_from_the_call_to_the_run() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True, max_batch=1, cost=alone)
        runs = await asyncio.gather(*[r.ask(model, value) for value in steps(3)])
        # The first run was over before the others were asked for.
        assert [(run.queue_s, run.seconds, run.samples) for run in runs] == [(0, 2, 1), (0, 2, 1), (2, 2, 1)]


async def test_a_failure_on_the_loop_is_its_callers_alone() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True, max_batch=1)
        for bad in (0, 1):  # at once, and from the line
            given = [0.25, 0.25, 0.25]
            given[bad] = BAD
            tasks = [r.ask(model, value) for value in given]
            async with asyncio.timeout(PATIENCE_S):
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(end, ModelError) for end in ended] == [at == bad for at in range(3)]
            assert await value_of(r.ask(model, 0.5)) == 0.5
        assert len(model.ran) == 6  # a run that failed says nothing of what runs cost


# ---- on the pool


async def test_first_come_first_served_on_the_pool() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        tasks = [await r.busy(model)]
        tasks += [r.ask(model, value) for value in steps(10)]
        await r.waiting(10)
        r.machine.let(11)
        await values(tasks)
        assert r.machine.order == r.ended == [0.5, *steps(10)]


async def test_no_more_runs_at_a_time_than_workers() -> None:
    # The pool has more threads than that: others use them, too.
    async with rig(workers=2, threads=4, held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        tasks = [r.ask(model, value) for value in steps(6)]
        await r.machine.began(2)
        await r.waiting(4)
        assert r.machine.order == steps(2)
        r.machine.let()
        await r.machine.began()
        assert r.machine.order == steps(3)
        r.machine.let(5)
        assert await values(tasks) == steps(6)
        assert r.machine.most_at_a_time == 2


async def test_company_takes_a_run_together_up_to_the_limit() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=4)
        tasks = [await r.busy(model)]
        tasks += [r.ask(model, value) for value in steps(6)]
        await r.waiting(6)
        r.machine.now += 0.25
        r.machine.let(3)
        assert await values(tasks) == [0.5, *steps(6)]
        assert model.engine.rows == [[0.5], steps(6)[:4], steps(6)[4:]]
        runs = [task.result() for task in tasks]
        assert [run.samples for run in runs] == [1, 4, 4, 4, 4, 2, 2]
        assert model.ran == [(1, 1.375), (4, 1.5), (2, 1.25)]  # what was waited for belongs to the first run
        assert [run.queue_s for run in runs] == [0, *[1.375] * 4, *[2.875] * 2]
        assert [run.seconds for run in runs] == [1.375, *[1.5] * 4, *[1.25] * 2]


async def test_models_do_not_share_a_run() -> None:
    async with rig(held=True) as r:
        one, other = Model(r.machine, inline=False), Model(r.machine, inline=False)
        tasks = [await r.busy(one)]
        given = [(one, 0.0), (other, 0.125), (one, 0.25), (other, 0.375)]
        tasks += [r.ask(model, value) for model, value in given]
        await r.waiting(4)
        r.machine.let(3)
        assert await values(tasks) == [0.5, 0.0, 0.125, 0.25, 0.375]
        assert (one.engine.rows, other.engine.rows) == ([[0.5], [0.0, 0.25]], [[0.125, 0.375]])


@pytest.mark.parametrize("inline", [True, False])
async def test_samples_that_cannot_be_joined_do_not_share_a_run(inline: bool) -> None:
    """A model may leave more axes free than that of the samples: nobody else is to suffer from it."""
    async with rig() as r:
        model = Model(r.machine, inline=inline)
        tasks = [r.ask(model, value, width) for value, width in zip(steps(5), (1, 1, 2, 1, 2), strict=True)]
        async with asyncio.timeout(PATIENCE_S):
            runs = await asyncio.gather(*tasks)
        assert [run.outputs["y"].shape for run in runs] == [(1, 1), (1, 1), (1, 2), (1, 1), (1, 2)]
        assert [run.outputs["y"][0, 0] / 2 for run in runs] == steps(5)
        assert sorted(samples for samples, _ in model.ran) == [1, 2, 2]


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("network", [HIGHEST, COUNT])
async def test_an_output_that_has_not_a_row_for_each(inline: bool, network: bytes) -> None:
    async with rig() as r:
        model = Model(r.machine, inline=inline, model=network)
        alone = await r.ask(model, 0.25)
        assert alone.outputs["y"].tolist() == [[0.5]]
        tasks = [r.ask(model, value) for value in steps(3)]
        async with asyncio.timeout(PATIENCE_S):
            first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, Run)
        for other in others:
            assert isinstance(other, ModelError)
            assert "has not 2 rows" in str(other)
        assert await value_of(r.ask(model, 0.75)) == 0.75


@pytest.mark.parametrize("inline", [True, False])
async def test_a_batch_that_fails_and_the_next_one(inline: bool) -> None:
    async with rig(held=not inline) as r:
        model = Model(r.machine, inline=inline, max_batch=2)
        tasks = [r.ask(model, 0.5) if inline else await r.busy(model)]
        tasks += [r.ask(model, value) for value in (0.0, 0.25, BAD, 0.5, 0.75)]
        r.machine.let(1000)
        async with asyncio.timeout(PATIENCE_S):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(end, ModelError) for end in ended] == [False, False, False, True, True, False]
        assert [samples for samples, _ in model.ran] == [1, 2, 1]
        assert await value_of(r.ask(model, 0.5)) == 0.5


@pytest.mark.parametrize("inline", [True, False])
async def test_whose_values_the_model_cannot_take_spoils_it_for_nobody(inline: bool) -> None:
    async with rig(held=not inline) as r:
        model = Model(r.machine, inline=inline, max_batch=4, model=PICKER)
        tasks = [r.ask(model, 0.5) if inline else await r.busy(model)]
        tasks += [r.ask(model, value) for value in (0.0, 0.25, BAD, 0.75)]
        r.machine.let(1000)
        async with asyncio.timeout(PATIENCE_S):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(end, InvalidInput) for end in ended] == [False, False, False, True, False]
        assert r.ended == [0.5, 0.0, 0.25, 0.75]
        assert [samples for samples, _ in model.ran] == [1, 1, 1, 1]


# ---- those who go away


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_who_goes_while_waiting_is_not_run(inline: bool, max_batch: int) -> None:
    async with rig(held=not inline) as r:
        model = Model(r.machine, inline=inline, max_batch=max_batch)
        first = r.ask(model, 0.5) if inline else await r.busy(model)
        tasks = [r.ask(model, value) for value in steps(5)]
        await r.waiting(5)
        for gone in (0, 2, 4):
            tasks[gone].cancel()
        r.machine.let(6)
        assert await values([first, tasks[1], tasks[3]]) == [0.5, *steps(5)[1::2]]
        assert r.machine.order == [0.5, *steps(5)[1::2]]
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [True, False, True, False, True]
        assert await value_of(r.ask(model, 0.75)) == 0.75


async def test_who_goes_during_the_run_disturbs_no_one() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False)
        first = await r.busy(model)
        tasks = [r.ask(model, value) for value in steps(4)]
        await r.waiting(4)
        r.machine.let()
        await r.machine.began()
        tasks[1].cancel()
        tasks[0].cancel()
        r.machine.let()
        assert await values([first, *tasks[2:]]) == [0.5, *steps(4)[2:]]
        assert [samples for samples, _ in model.ran] == [1, 4]  # the machine worked for them all the same


async def test_who_goes_during_a_run_that_fails_disturbs_no_one() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False)
        first = await r.busy(model)
        tasks = [r.ask(model, value) for value in (0.0, BAD, 0.25)]
        await r.waiting(3)
        r.machine.let()
        await r.machine.began()
        tasks[0].cancel()
        r.machine.let()
        assert await value_of(first) == 0.5
        for task in tasks[1:]:
            with pytest.raises(ModelError, match="doubler: the run failed"):
                await value_of(task)
        r.machine.let()
        assert await value_of(r.ask(model, 0.75)) == 0.75


async def test_all_go_and_the_pool_serves_the_next() -> None:
    async with rig(workers=2, held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        tasks = [r.ask(model, value) for value in steps(5)]
        await r.machine.began(2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        r.machine.let(3)
        assert await value_of(r.ask(model, 0.75)) == 0.75
        assert r.machine.order == [*steps(2), 0.75]


# ---- what pays


async def ranks(model: Model, r: Rig, callers: int, rounds: int) -> list[list[int]]:
    """The samples of each run, in rounds of so many callers at once."""
    found = []
    for _ in range(rounds):
        before = len(model.ran)
        await values([r.ask(model, value) for value in steps(callers)])
        found.append([samples for samples, _ in model.ran[before:]])
    return found


@pytest.mark.parametrize("inline", [True, False])
async def test_where_batches_gain_nothing_there_are_none(inline: bool) -> None:
    async with rig() as r:
        model = Model(r.machine, inline=inline, cost=alone)
        assert await ranks(model, r, 9, 10) == [[1] * 9] * 10


@pytest.mark.parametrize("inline", [True, False])
async def test_where_batches_pay_all_who_wait_share_one(inline: bool) -> None:
    async with rig() as r:
        model = Model(r.machine, inline=inline, max_batch=8, cost=shared)
        assert [sorted(found) for found in await ranks(model, r, 9, 10)] == [[1, 8]] * 10


async def test_where_batches_pay_and_many_come_at_a_time_nobody_runs_ahead_alone() -> None:
    """Those of one turn of the loop share a run, once the turn before has shown that they come together."""
    async with rig() as r:
        model = Model(r.machine, inline=True, cost=lambda n: shared(n) / 2**14)
        other = Model(r.machine, inline=True, cost=lambda n: alone(n) / 2**14)
        assert (await ranks(model, r, 4, 2))[-1] == [4]
        before = len(r.machine.order)
        tasks = [r.ask(model, 0.0), r.ask(other, 0.25), r.ask(model, 0.5)]
        await asyncio.sleep(0)
        assert len(r.machine.order) == before
        await values(tasks)
        assert r.machine.order[before:] == [0.0, 0.5, 0.25]  # who came behind them has not run ahead
        assert [samples for samples, _ in model.ran[-1:]] == [2]
        assert await ranks(model, r, 1, 3) == [[1]] * 3  # who is alone does not wait for company


async def test_where_batches_gain_nothing_who_comes_runs_at_once() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True, cost=lambda n: alone(n) / 2**14)
        assert await ranks(model, r, 4, 2) == [[1] * 4] * 2
        before = len(r.machine.order)
        tasks = [r.ask(model, 0.25), r.ask(model, 0.5)]
        await asyncio.sleep(0)
        assert r.machine.order[before:] == [0.25, 0.5]
        assert await values(tasks) == [0.25, 0.5]


@pytest.mark.parametrize("pays", [True, False])
async def test_whether_batches_pay_is_found_out_by_pairs(pays: bool) -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True, told=False, cost=shared if pays else alone)
        first, *_, last = await ranks(model, r, 9, 12)
        assert first[:2] == [1, 2]
        assert max(first) == 2  # no more than that while it is a guess
        assert sorted(last) == ([1, 4, 4] if pays else [1] * 9)


async def test_a_model_that_takes_one_sample_never_gets_more() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=False, max_batch=1)
        assert await ranks(model, r, 9, 3) == [[1] * 9] * 3


# ---- who goes first, and who is too late


async def test_better_classes_go_first_on_the_pool() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        tasks = [await r.busy(model)]
        for value, priority in zip(steps(6), (BACKGROUND, NORMAL, CRITICAL) * 2, strict=True):
            tasks.append(r.ask(model, value, priority=priority))
        await r.waiting(6)
        assert [r.runner.count(priority) for priority in Priority] == [2, 2, 2]
        r.machine.let(7)
        await values(tasks)
        at = steps(6)
        assert r.machine.order == [0.5, at[2], at[5], at[1], at[4], at[0], at[3]]


async def test_better_classes_go_first_on_the_loop() -> None:
    async with rig() as r:
        model = Model(r.machine, inline=True, max_batch=1)
        given = (BACKGROUND, BACKGROUND, NORMAL, CRITICAL)
        tasks = [r.ask(model, v, priority=p) for v, p in zip(steps(4), given, strict=True)]
        await values(tasks)
        at = steps(4)
        assert r.machine.order == [at[0], at[3], at[2], at[1]]  # the first found nobody before it


async def test_the_lowest_class_is_run_while_better_ones_never_end() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        tasks = [await r.busy(model), r.ask(model, 0.25, priority=BACKGROUND)]
        tasks += [r.ask(model, value, priority=CRITICAL) for value in steps(2 * PATIENCE)]
        await r.waiting(2 * PATIENCE + 1)
        r.machine.let(len(tasks))
        await values(tasks)
        assert r.machine.order.index(0.25) == PATIENCE + 1


async def test_who_comes_back_from_the_cloud_is_next_of_its_class() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        tasks = [await r.busy(model), r.ask(model, 0.0), r.ask(model, 0.125, priority=CRITICAL)]
        await r.waiting(2)
        tasks.append(r.ask(model, 0.25, at_once=True))
        await r.waiting(3)
        r.machine.let(4)
        await values(tasks)
        assert r.machine.order == [0.5, 0.125, 0.25, 0.0]


@pytest.mark.parametrize("inline", [True, False])
async def test_who_is_made_late_by_others_is_told_and_not_run(inline: bool) -> None:
    async with rig(held=not inline) as r:
        model = Model(r.machine, inline=inline, max_batch=1, cost=alone)  # 2 s a run
        tasks = [r.ask(model, 0.5) if inline else await r.busy(model)]
        tasks.append(r.ask(model, 0.0))
        late = r.ask(model, 0.125, deadline=5.5)
        tasks += [r.ask(model, 0.25, deadline=6.0), r.ask(model, 0.375, deadline=100.0)]
        r.machine.let(4)
        assert await values(tasks) == [0.5, 0.0, 0.25, 0.375]
        with pytest.raises(Overloaded, match=r"waited [24]\.000 s for a run, and would be late") as caught:
            await late
        assert caught.value.why == "expired"
        assert caught.value.retry_after_s > 0
        assert 0.125 not in r.machine.order


@pytest.mark.parametrize("inline", [True, False])
async def test_who_could_never_be_in_time_is_run_all_the_same(inline: bool) -> None:
    """Nobody made it late: on an idle node it gets its answer, however late."""
    async with rig(held=not inline) as r:
        model = Model(r.machine, inline=inline, max_batch=1, cost=alone)
        tasks = [r.ask(model, 0.5) if inline else await r.busy(model), r.ask(model, 0.25, deadline=1.0)]
        r.machine.let(2)
        assert await values(tasks) == [0.5, 0.25]


async def test_company_makes_nobody_late() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=4, cost=shared)  # 1.125 s alone, 1.5 with three more
        first = await r.busy(model)
        urgent = r.ask(model, 0.125, deadline=1.125 + 1.3)
        others = [r.ask(model, value) for value in (0.25, 0.375, 0.75)]
        await r.waiting(4)
        r.machine.let(3)
        assert await values([first, urgent, *others]) == [0.5, 0.125, 0.25, 0.375, 0.75]
        assert model.engine.rows == [[0.5], [0.125, 0.25], [0.375, 0.75]]


async def test_the_newest_of_the_least_class_gives_way() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        first = await r.busy(model)
        staying = [r.ask(model, 0.0, priority=NORMAL), r.ask(model, 0.125, priority=BACKGROUND)]
        leaving = r.ask(model, 0.25, priority=BACKGROUND)
        await r.waiting(3)
        assert not r.runner.displace(BACKGROUND)
        assert r.runner.displace(CRITICAL)
        with pytest.raises(Overloaded, match="a critical request was let in instead") as caught:
            await leaving
        assert caught.value.why == "displaced"
        r.machine.let(3)
        assert await values([first, *staying]) == [0.5, 0.0, 0.125]
        assert not r.runner.displace(CRITICAL)


async def test_who_has_hung_up_makes_no_room() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        first = await r.busy(model)
        staying = r.ask(model, 0.125, priority=BACKGROUND)
        gone = r.ask(model, 0.25, priority=BACKGROUND)
        await r.waiting(2)
        gone.cancel()
        await asyncio.wait({gone})
        assert r.runner.displace(CRITICAL)
        with pytest.raises(Overloaded):
            await staying
        assert not r.runner.displace(CRITICAL)
        r.machine.let(1)
        assert await values([first]) == [0.5]


async def test_the_wait_is_foreseen_by_class() -> None:
    async with rig(workers=2, held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1, cost=alone)
        assert r.runner.wait_s(model.timed, NORMAL) == r.runner.drain_s == 0.0
        tasks = [await r.busy(model)]
        assert r.runner.wait_s(model.timed, NORMAL) == 0.0  # a worker is free
        tasks.append(await r.busy(model))
        assert r.runner.wait_s(model.timed, NORMAL) == (2 + 2) / 2
        tasks += [r.ask(model, value, priority=NORMAL) for value in steps(3)]
        tasks.append(r.ask(model, 0.75, priority=BACKGROUND))
        await r.waiting(4)
        waits = [r.runner.wait_s(model.timed, priority) for priority in Priority]
        assert waits == [4 / 2, (4 + 3 * 2) / 2, (4 + 4 * 2) / 2]
        assert r.runner.drain_s == waits[-1]
        r.machine.let(6)
        await values(tasks)
        assert r.runner.drain_s == 0.0


# ---- runs that do not end


def quick(samples: int) -> float:
    return 2**-10


async def test_a_run_that_does_not_end_is_not_waited_for() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, cost=quick)
        impatient = r.ask(model, 0.25, patience=0.02)
        await r.machine.began()
        with pytest.raises(ModelError, match="doubler: its run has not ended, 10 times as long as usual"):
            await impatient
        r.machine.let(2)  # it ends after all: nothing comes of that, and the worker goes on
        assert await value_of(r.ask(model, 0.5, patience=60.0)) == 0.5


async def test_a_run_is_waited_for_as_long_as_runs_may_take() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, cost=lambda _: 0.25)
        task = r.ask(model, 0.25, patience=0.0)
        await r.machine.began()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.1)
        r.machine.let()
        assert await value_of(task) == 0.25


async def test_each_of_a_batch_has_patience_of_its_own() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, cost=quick)
        tasks = [await r.busy(model)]
        impatient, patient = r.ask(model, 0.125, patience=0.02), r.ask(model, 0.25)
        await r.waiting(2)
        r.machine.let()
        await r.machine.began()
        with pytest.raises(ModelError):
            await impatient
        assert not patient.done()
        r.machine.let()
        assert await values([*tasks, patient]) == [0.5, 0.25]


async def test_nobody_waits_past_the_deadline_for_a_run_to_begin() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1, cost=quick)
        first = await r.busy(model)
        late, early = r.ask(model, 0.125, deadline=0.05), r.ask(model, 0.25, deadline=60.0)
        await r.waiting(2)
        r.machine.now += 1  # the first takes far too long
        with pytest.raises(Overloaded, match=r"waited 1\.000 s for a run, and would be late") as caught:
            await late
        assert (caught.value.why, r.runner.waiting) == ("expired", 1)
        r.machine.let(2)
        assert await values([first, early]) == [0.5, 0.25]


async def test_a_run_that_does_not_end_is_taken_to_be_as_late_again() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1, cost=alone)
        task = await r.busy(model)
        waits = []
        for seconds in (0, 7, 13):
            r.machine.now += seconds
            assert r.runner.wait_s(model.timed, NORMAL) == r.runner.drain_s
            waits.append(r.runner.drain_s)
        assert waits == [2, 0, 18]
        r.machine.let()
        assert await value_of(task) == 0.5


async def test_a_run_that_does_not_end_costs_one_worker_and_no_more() -> None:
    async with rig(workers=2, held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1, cost=alone)
        tasks = [await r.busy(model)]
        r.machine.now += 100
        tasks.append(await r.busy(model))
        tasks.append(r.ask(model, 0.25))
        await r.waiting(1)
        assert r.runner.wait_s(model.timed, NORMAL) == 2 + 2
        r.machine.let(3)
        await values(tasks)


async def test_a_run_without_patience_is_not_taken_for_one_that_waits() -> None:
    """It has a deadline by which it was to begin, and has begun."""
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, cost=quick)
        task = r.ask(model, 0.25, deadline=0.02)
        await r.machine.began()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.1)
        r.machine.let()
        assert await value_of(task) == 0.25


async def test_a_run_that_has_ended_is_none_that_hangs() -> None:
    """The loop may be the one that is late: then the timer and the end of the run are due together."""
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, cost=quick)
        task = r.ask(model, 0.25, patience=0.05)
        await r.machine.began()
        r.machine.let()
        time.sleep(0.2)  # noqa: ASYNC251 - the loop stands still, while the run ends on its thread
        assert r.machine.running == 0
        assert await value_of(task) == 0.25


async def test_who_hangs_up_does_not_wait_in_the_line() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1, cost=quick)
        first = await r.busy(model)
        gone = [r.ask(model, 0.125, deadline=3600.0) for _ in range(3)]
        await r.waiting(3)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        assert r.runner.waiting == 0
        r.machine.let()
        assert await value_of(first) == 0.5


async def test_who_hangs_up_leaves_nothing_behind() -> None:
    async with rig(held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1, cost=quick)
        first = await r.busy(model)
        gone = [r.ask(model, 0.125, deadline=3600.0, patience=3600.0) for _ in range(3)]
        await r.waiting(3)
        waiting = [one for one in gc.get_objects() if isinstance(one, Waiting)]
        arrays = [one.inputs["x"] for one in waiting if one.model is model.timed]
        inputs = [weakref.ref(array) for array in arrays if array[0, 0] == 0.125]
        assert len(inputs) == 3
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        r.machine.let()
        assert await value_of(first) == 0.5
        gone.clear()
        del task, waiting, arrays
        gc.collect()
        assert [ref() for ref in inputs] == [None] * 3


# ---- the end


async def test_a_pool_that_is_shut_down_answers_everyone() -> None:
    """One runs, one waits inside the pool, the others before it; then more come."""
    async with rig(workers=2, threads=1, held=True) as r:
        model = Model(r.machine, inline=False, max_batch=1)
        first = await r.busy(model)
        tasks = [r.ask(model, value) for value in steps(4)]
        await r.waiting(3)
        r.executor.shutdown(wait=False, cancel_futures=True)
        r.machine.let()
        assert await value_of(first) == 0.5
        for task in [*tasks, r.ask(model, 0.75), r.ask(model, 0.75)]:
            with pytest.raises(NotReady, match="the service is stopping"):
                await value_of(task)
        assert r.machine.order == [0.5]


# ---- everything at once


CALLERS = st.lists(
    st.tuples(
        st.integers(0, 2),  # turns of the loop before it comes
        st.integers(0, 3),  # its model
        st.integers(1, 2),  # its width
        st.none() | st.integers(0, 4),  # turns after which it goes
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=60)
@given(callers=CALLERS, workers=st.integers(1, 3), max_batch=st.integers(1, 5))
async def test_everyone_gets_what_is_theirs(
    callers: list[tuple[int, int, int, int | None]], workers: int, max_batch: int
) -> None:
    """Two models on the loop, two on the pool, of which one each gains by batches."""
    async with rig(workers=workers, threads=3) as r:
        models = [
            Model(r.machine, inline=inline, max_batch=max_batch, cost=cost)
            for inline in (True, False)
            for cost in (shared, alone)
        ]
        tasks: list[tuple[asyncio.Task[Run], float, int, int]] = []
        leaving: list[asyncio.Task[None]] = []
        for value, (turns, which, width, stays) in zip(steps(len(callers)), callers, strict=True):
            for _ in range(turns):
                await asyncio.sleep(0)
            task = r.ask(models[which], value, width)
            tasks.append((task, value, which, width))
            if stays is not None:
                leaving.append(asyncio.create_task(_cancel(task, stays)))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([*leaving, *(task for task, *_ in tasks)])
        for task, value, which, width in tasks:
            if not task.cancelled():
                assert task.result().outputs["y"].tolist() == [[2 * value] * width]
                assert value in [row for run in models[which].engine.rows for row in run]
        for which, model in enumerate(models):
            own = {value: at for at, (_, value, whose, _) in enumerate(tasks) if whose == which}
            ran = [value for run in model.engine.rows for value in run]
            assert len(ran) == len(set(ran)), "nobody is run twice"
            assert set(ran) <= own.keys()
            assert all(len(run) <= max_batch for run in model.engine.rows)
            for run in model.engine.rows:
                assert run == sorted(run)
                assert len({tasks[own[value]][3] for value in run}) == 1
        # With one at a time, those of one model and one form are run in the order in which they came.
        for which in (0, 1, *((2, 3) if workers == 1 else ())):
            for width in (1, 2):
                of_form = {value for _, value, whose, wide in tasks if (whose, wide) == (which, width)}
                ran = [value for run in models[which].engine.rows for value in run if value in of_form]
                assert ran == sorted(ran)
        assert r.machine.most_at_a_time <= workers + 1  # and one on the loop


async def _cancel(task: asyncio.Task[Run], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
