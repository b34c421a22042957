"""Concurrent calls of one model, grouped into runs.

While a run is under way, calls gather; the next run takes as many of them as pay, by what runs of so many
samples have cost, and as none of them is late for. So an idle model answers at once and a busy one batches
by itself; `window_s` makes even an idle one wait for company. A short run of an idle model takes place on the
event loop: the way to a thread and back would cost more than it gives.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from inference_core.batch_cost import BatchCost
from inference_core.engine import Engine
from inference_core.errors import DeadlineExceeded, InvalidInput, ModelError, NotReady, Overloaded
from inference_core.tensors import Tensors

_BELIEVED_S = 1.0  # how long the cost of the last run speaks for the next


@dataclass(frozen=True)
class Batched:
    """One caller's own rows, and the seconds it waited and its batch ran."""

    outputs: Tensors
    queue_s: float
    infer_s: float


@dataclass(eq=False)
class _Waiter:
    inputs: Tensors
    rows: int
    deadline: float
    enqueued: float
    future: asyncio.Future[Batched]
    kind: tuple[object, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.kind = tuple((name, a.dtype.str, a.shape[1:]) for name, a in sorted(self.inputs.items()))


class Batcher:
    """Runs one engine for many callers. Lives on one event loop; `close` answers everyone."""

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        *,
        max_batch_size: int,
        window_s: float,
        max_queue: int,
        clock: Callable[[], float],
        on_run: Callable[[int], object],
        on_ran: Callable[[int, float], object] | None = None,
        inline_s: float = 0.0,
    ) -> None:
        """`max_batch_size` and `max_queue` count samples; `clock` is monotonic, in seconds;
        `on_run` is told the samples of each run when it begins, `on_ran` also its seconds when it has ended
        well. A run that is expected to take less than `inline_s` seconds may take place on the event loop."""
        self._engine = engine
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._window_s = window_s
        self._max_queue = max_queue
        self._clock = clock
        self._on_run = on_run
        self._on_ran = on_ran
        self._inline_s = inline_s
        self.cost = BatchCost(clock)
        self._running = False
        self._queue: deque[_Waiter] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Samples that wait."""
        return sum(waiter.rows for waiter in self._queue)

    async def submit(self, inputs: Tensors, deadline: float) -> Batched:
        """Run `inputs`, whose arrays share a first axis of samples, in some batch.

        `deadline` is a time on the clock: a call still waiting then is not run. Raises `InvalidInput`
        for inputs that fit no run, `Overloaded` when the queue is full, `NotReady` when
        closing, `DeadlineExceeded`, and `ModelError` when its run fails. Cancelling it disturbs no one.
        """
        rows = self._rows(inputs)
        if self._closing:
            raise NotReady("the service is stopping")
        if self._queue and self.depth + rows > self._max_queue:
            raise Overloaded(f"{self.depth} samples are waiting, the limit is {self._max_queue}")
        now = self._clock()
        if self._hopeless(rows, deadline, now):
            raise DeadlineExceeded("too little time is left for a run")
        if self._may_run_inline(rows):
            self._on_run(rows)
            outputs = self._engine.compute(inputs)
            return Batched(outputs, 0.0, self._ran(rows, outputs, now))
        loop = asyncio.get_running_loop()
        waiter = _Waiter(inputs, rows, deadline, now, loop.create_future())
        self._queue.append(waiter)
        if self._worker is None:
            self._worker = loop.create_task(self._work(), name=f"batcher {self._engine.name}")
        self._changed.set()
        try:
            return await waiter.future
        finally:
            if waiter in self._queue:  # cancelled before it was taken
                self._queue.remove(waiter)

    async def close(self) -> None:
        """Refuse new calls, answer those that wait, and return when the last run has ended."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    def _hopeless(self, rows: int, deadline: float, now: float) -> bool:
        """Whether not even a run of its own would end in time. What has not been seen for a while is not
        believed: else one stall could refuse everyone for good."""
        if deadline <= now:
            return True
        seconds, age_s = self.cost.seconds(rows), self.cost.age_s
        return seconds is not None and age_s is not None and age_s < _BELIEVED_S and now + seconds > deadline

    def _may_run_inline(self, rows: int) -> bool:
        if self._queue or self._running or self._window_s or not self._inline_s:
            return False
        seconds = self.cost.seconds(rows)
        return seconds is not None and seconds < self._inline_s

    def _rows(self, inputs: Tensors) -> int:
        self._engine.check(inputs)
        counts = [array.shape[0] if array.ndim else 0 for array in inputs.values()]
        rows = counts[0]
        if rows < 1 or (len(counts) > 1 and len(set(counts)) > 1):
            raise InvalidInput(f"inputs must share a first axis of 1 or more samples, got {counts}")
        if rows > self._max_batch_size:
            raise InvalidInput(f"{rows} samples in one request, the limit is {self._max_batch_size}")
        return rows

    async def _work(self) -> None:
        while self._queue or not self._closing:
            if not self._queue:
                self._changed.clear()
                await self._changed.wait()
            elif not await self._company_comes():
                batch = self._take()
                if batch:
                    await self._run(batch)

    async def _company_comes(self) -> bool:
        """Wait for another call, as long as the window of the oldest one allows; False when it is time."""
        oldest = self._queue[0]
        left = oldest.enqueued + self._window_s - self._clock()
        alike = sum(waiter.rows for waiter in self._queue if waiter.kind == oldest.kind)
        if left <= 0 or alike >= self._max_batch_size or self._closing:
            return False
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._changed.wait()
        return True

    def _take(self) -> list[_Waiter]:
        """The oldest call and those after it that fit into one run with it, taken off the queue.

        A call joins when that pays, and when neither it nor those before it would be late for that.
        """
        batch: list[_Waiter] = []
        left: deque[_Waiter] = deque()
        now, room, rows, first_deadline = self._clock(), self._room(), 0, math.inf
        for waiter in self._queue:
            if waiter.future.done():
                continue
            earliest = min(first_deadline, waiter.deadline)
            if self._hopeless(waiter.rows, waiter.deadline, now):
                waiter.future.set_exception(DeadlineExceeded("too little time is left for a run"))
            elif not batch or (
                waiter.kind == batch[0].kind
                and rows + waiter.rows <= room
                and now + (self.cost.seconds(rows + waiter.rows) or 0.0) <= earliest
            ):
                batch.append(waiter)
                rows += waiter.rows
                first_deadline = earliest
            else:
                left.append(waiter)
        self._queue = left
        return batch

    def _room(self) -> int:
        """How many samples the next run may take: until the cost of a batch is known, as many as wait."""
        if not self.cost.told:
            return self._max_batch_size
        alike = sum(waiter.rows for waiter in self._queue if waiter.kind == self._queue[0].kind)
        return self.cost.best(alike, self._max_batch_size)

    async def _run(self, batch: list[_Waiter]) -> None:
        started = self._clock()
        rows = sum(waiter.rows for waiter in batch)
        self._on_run(rows)
        loop = asyncio.get_running_loop()
        self._running = True
        try:
            outputs = await loop.run_in_executor(self._executor, self._engine.compute, _join(batch))
            infer_s = self._ran(rows, outputs, started)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            for waiter in batch:
                if not waiter.future.done():
                    waiter.future.set_exception(error)
            return
        finally:
            self._running = False
        at = 0
        for waiter in batch:
            own = {name: array[at : at + waiter.rows] for name, array in outputs.items()}
            at += waiter.rows
            if not waiter.future.done():
                waiter.future.set_result(Batched(own, started - waiter.enqueued, infer_s))

    def _ran(self, rows: int, outputs: Tensors, started: float) -> float:
        """Note a run that began at `started` and has just ended; its seconds. Raises `ModelError` when not as
        many rows came out of it as went in."""
        seconds = self._clock() - started
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise ModelError(f"{self._engine.name}: output {name!r} has not {rows} rows")
        self.cost.observe(rows, seconds)
        if self._on_ran is not None:
            self._on_ran(rows, seconds)
        return seconds


def _join(batch: list[_Waiter]) -> Tensors:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([waiter.inputs[name] for waiter in batch]) for name in batch[0].inputs}
