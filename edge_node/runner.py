"""Runs models for everyone who waits, first come, first served.

A short run happens on the event loop itself: to hand it to a thread and back would cost more than it saves.
Longer ones go to the pool, as many at a time as it has workers. Which is which was measured at load. Where
several wait for the same model and `BatchCost` says that it pays, they share one run.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from inference_core.batch_cost import BatchCost
from inference_core.engine import Engine
from inference_core.errors import ModelError, NotReady
from inference_core.tensors import Tensors

_STOPPING = "the service is stopping"
# What runs may take of one turn of the loop, before it reads again: so that who came first is known.
_TURN_S = 0.0005


@dataclass(frozen=True, slots=True)
class Timed:
    """An engine, what its runs have cost so far, and the most samples one run may take.

    `inline` says that its runs are so short that they happen on the loop; `on_run` is told the samples and
    the seconds of each.
    """

    engine: Engine
    cost: BatchCost
    max_batch: int
    inline: bool
    on_run: Callable[[int, float], object]

    def ran(self, samples: int, seconds: float) -> None:
        """Take note of a run."""
        self.cost.observe(samples, seconds)
        self.on_run(samples, seconds)


@dataclass(frozen=True, slots=True)
class Run:
    """One caller's outputs, the seconds that it waited and that its run took, and that run's samples."""

    outputs: Tensors
    queue_s: float
    seconds: float
    samples: int


@dataclass(eq=False, slots=True)
class _Waiting:
    """A caller."""

    model: Timed
    inputs: Tensors
    since: float
    future: asyncio.Future[Run]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Only inputs of the same shapes can be joined: a model may leave any axis free."""
        return [self.inputs[name].shape for name in sorted(self.inputs)]


class Runner:
    """One event loop's runs."""

    def __init__(self, executor: Executor, *, workers: int, clock: Callable[[], float]) -> None:
        """`executor` is the pool, `workers` how many of its threads run models; `clock` is monotonic, in
        seconds."""
        self._executor = executor
        self._workers = workers
        self._clock = clock
        self._inline: deque[_Waiting] = deque()
        self._pooled: deque[_Waiting] = deque()
        self._on_pool = 0
        # Of this turn of the loop: the seconds that runs took, how many arrived, whether its end is seen to;
        # and how many arrived in the last turn in which anybody did.
        self._spent_s = 0.0
        self._arrived = 0
        self._turn_ends = False
        self._crowd = 0

    @property
    def waiting(self) -> int:
        """Samples that wait for a run."""
        return len(self._inline) + len(self._pooled)

    async def run(self, model: Timed, inputs: Tensors) -> Run:
        """Run one sample, whose inputs have been checked. Raises `ModelError`; cancelling disturbs no one."""
        if not model.inline:
            future = self._line_up(self._pooled, model, inputs)
            self._fill_pool()
            return await future
        self._arrived += 1
        if not self._turn_ends:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._end_turn)
        gathering = self._crowd > 1 and model.cost.pays(2)
        if self._inline or gathering or self._spent_s >= _TURN_S:
            return await self._line_up(self._inline, model, inputs)
        outputs, seconds = self._compute(model, inputs)
        self._spent_s += seconds
        model.ran(1, seconds)
        return Run(outputs, 0.0, seconds, 1)

    def _line_up(self, line: deque[_Waiting], model: Timed, inputs: Tensors) -> asyncio.Future[Run]:
        future: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        line.append(_Waiting(model, inputs, self._clock(), future))
        return future

    def _end_turn(self) -> None:
        """Begin the next turn's runs with those who wait; what then is left of the turn is for who comes."""
        self._turn_ends = False
        self._crowd, self._arrived, self._spent_s = self._arrived or self._crowd, 0, 0.0
        while self._spent_s < _TURN_S and (batch := self._take(self._inline)):
            started = self._clock()
            try:
                ran = self._attempt(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
                _fail(batch, error)
            else:
                _share(batch, *ran)
            self._spent_s += self._clock() - started
        if self._inline or self._spent_s:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _fill_pool(self) -> None:
        loop = asyncio.get_running_loop()
        while self._on_pool < self._workers and (batch := self._take(self._pooled)):
            try:
                job = loop.run_in_executor(self._executor, self._attempt, batch)
            except RuntimeError:  # the pool has been shut down: nobody else will be answered either
                _fail(batch, NotReady(_STOPPING))
                continue
            self._on_pool += 1
            job.add_done_callback(partial(self._ended, batch))

    def _attempt(self, batch: list[_Waiting]) -> tuple[float, Tensors, float]:
        model, samples, started = batch[0].model, len(batch), self._clock()
        outputs, seconds = self._compute(model, _joined(batch))
        for name, array in outputs.items() if samples > 1 else ():
            if array.shape[:1] != (samples,):
                raise ModelError(f"{model.engine.name}: output {name!r} has not {samples} rows")
        return started, outputs, seconds

    def _ended(self, batch: list[_Waiting], job: asyncio.Future[tuple[float, Tensors, float]]) -> None:
        self._on_pool -= 1
        error = NotReady(_STOPPING) if job.cancelled() else job.exception()
        if error is None:
            _share(batch, *job.result())
        else:
            _fail(batch, error)
        self._fill_pool()

    def _take(self, line: deque[_Waiting]) -> list[_Waiting]:
        """The first who still waits, and as many of the same model as share the run with it."""
        while line and line[0].future.done():
            line.popleft()
        if not line:
            return []
        first = line.popleft()
        model = first.model
        if not line or model.max_batch == 1:
            return [first]
        alike = [
            other
            for other in line
            if other.model is model and other.shapes == first.shapes and not other.future.done()
        ]
        company = alike[: model.cost.best(len(alike) + 1, model.max_batch) - 1]
        for other in company:
            line.remove(other)
        return [first, *company]

    def _compute(self, model: Timed, inputs: Tensors) -> tuple[Tensors, float]:
        started = self._clock()
        outputs = model.engine.compute(inputs)
        return outputs, self._clock() - started


def _joined(batch: list[_Waiting]) -> Tensors:
    first = batch[0].inputs
    if len(batch) == 1:
        return first
    return {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in first}


def _share(batch: list[_Waiting], started: float, outputs: Tensors, seconds: float) -> None:
    """Give everyone the row that is theirs."""
    samples = len(batch)
    batch[0].model.ran(samples, seconds)
    for row, waiting in enumerate(batch):
        if not waiting.future.done():
            own = {name: array[row : row + 1] for name, array in outputs.items()} if samples > 1 else outputs
            waiting.future.set_result(Run(own, started - waiting.since, seconds, samples))


def _fail(batch: list[_Waiting], error: BaseException) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
