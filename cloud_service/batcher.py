"""Concurrent calls of one model, grouped into runs.

While a run is under way, calls gather; the next run takes as many of them as fit. So an idle model
answers at once and a busy one batches by itself; `window_s` makes even an idle one wait for company.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from inference_core.engine import Engine
from inference_core.errors import DeadlineExceeded, InvalidInput, ModelError, NotReady, Overloaded, TooLarge
from inference_core.tensors import Tensors


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
    ) -> None:
        """`max_batch_size` and `max_queue` count samples; `clock` is monotonic, in seconds;
        `on_run` is told the samples of each run."""
        self._engine = engine
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._window_s = window_s
        self._max_queue = max_queue
        self._clock = clock
        self._on_run = on_run
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
        and `TooLarge` for inputs that fit no run, `Overloaded` when the queue is full, `NotReady` when
        closing, `DeadlineExceeded`, and `ModelError` when its run fails. Cancelling it disturbs no one.
        """
        rows = self._rows(inputs)
        if self._closing:
            raise NotReady("the service is stopping")
        if self.depth + rows > self._max_queue:
            raise Overloaded(f"{self.depth} samples are waiting, the limit is {self._max_queue}")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(inputs, rows, deadline, self._clock(), loop.create_future())
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

    def _rows(self, inputs: Tensors) -> int:
        self._engine.check(inputs)
        counts = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
        if len(counts) != 1 or 0 in counts:
            raise InvalidInput(f"inputs must share a first axis of 1 or more samples, got {sorted(counts)}")
        rows = counts.pop()
        if rows > self._max_batch_size:
            raise TooLarge(f"{rows} samples in one request, the limit is {self._max_batch_size}")
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
        """The oldest call and those after it that fit into one run with it, taken off the queue."""
        batch: list[_Waiter] = []
        left: deque[_Waiter] = deque()
        now, room = self._clock(), self._max_batch_size
        for waiter in self._queue:
            if waiter.future.done():
                continue
            if waiter.deadline <= now:
                waiter.future.set_exception(DeadlineExceeded("the deadline passed while waiting for a run"))
            elif waiter.rows <= room and (not batch or waiter.kind == batch[0].kind):
                batch.append(waiter)
                room -= waiter.rows
            else:
                left.append(waiter)
        self._queue = left
        return batch

    async def _run(self, batch: list[_Waiter]) -> None:
        started = self._clock()
        rows = sum(waiter.rows for waiter in batch)
        self._on_run(rows)
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._executor, self._engine.run, _join(batch))
            for name, array in outputs.items():
                if array.shape[:1] != (rows,):
                    raise ModelError(f"{self._engine.name}: output {name!r} has not {rows} rows")
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            for waiter in batch:
                if not waiter.future.done():
                    waiter.future.set_exception(error)
            return
        ended, at = self._clock(), 0
        for waiter in batch:
            own = {name: array[at : at + waiter.rows] for name, array in outputs.items()}
            at += waiter.rows
            if not waiter.future.done():
                waiter.future.set_result(Batched(own, started - waiter.enqueued, ended - started))


def _join(batch: list[_Waiter]) -> Tensors:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([waiter.inputs[name] for waiter in batch]) for name in batch[0].inputs}
