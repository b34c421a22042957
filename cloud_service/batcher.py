"""Concurrent calls of one model, grouped into runs.

While a run is under way, calls gather; the next run takes as many of them as pay, by what runs of so many
samples have cost, and as none of them is late for. So an idle model answers at once and a busy one batches
by itself; `window_s` makes even an idle one wait for company. A short run of an idle model takes place on the
event loop: the way to a thread and back would cost more than it gives.

Who goes first, and whose calls give way when there is no more room, is the `Line`'s to say: by priority, and
fair between callers.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from cloud_service.admission import Admission
from cloud_service.waiter import Batched, Waiter
from inference_core.batch_cost import BatchCost
from inference_core.concurrency import Limit
from inference_core.engine import Engine
from inference_core.errors import InvalidInput, ModelError, NotReady
from inference_core.line import Line
from inference_core.priority import Priority
from inference_core.tensors import Tensors


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
        limit: Limit | None = None,
        on_shed: Callable[[Priority, str], object] = lambda _, __: None,
    ) -> None:
        """`max_batch_size` and `max_queue` count samples; `clock` is monotonic, in seconds;
        `on_run` is told the samples of each run when it begins, `on_ran` also its seconds when it has ended
        well. A run that is expected to take less than `inline_s` seconds may take place on the event loop.
        `limit` and `on_shed` are the `Admission`'s."""
        self._engine = engine
        self._executor = executor
        self._max_batch_size = max_batch_size
        self._window_s = window_s
        self._clock = clock
        self._on_run = on_run
        self._on_ran = on_ran
        self._inline_s = inline_s
        self.cost = BatchCost(clock)
        self._running = False
        self._line: Line[Waiter] = Line()
        self.admission = Admission(
            self._line,
            self.cost,
            max_queue=max_queue,
            max_batch_size=max_batch_size,
            clock=clock,
            limit=limit,
            on_shed=on_shed,
        )
        self._changed = asyncio.Event()
        self._closing = False
        self._retired = False
        self._worker: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Samples that wait."""
        return int(self._line.work)

    def admit(
        self, inputs: Tensors, deadline: float, *, priority: Priority = Priority.NORMAL, caller: str = ""
    ) -> None:
        """Raise what `submit` would for want of room or time, before `inputs` are decoded: `Overloaded`,
        `DeadlineExceeded` or `NotReady`. It reserves nothing."""
        if self._closing:
            raise NotReady("the service is stopping")
        rows = max((array.shape[0] for array in inputs.values() if array.ndim), default=1)
        self.admission.let_in(max(rows, 1), deadline, priority, caller)

    async def submit(
        self, inputs: Tensors, deadline: float, *, priority: Priority = Priority.NORMAL, caller: str = ""
    ) -> Batched:
        """Run `inputs`, whose arrays share a first axis of samples, in some batch.

        `deadline` is a time on the clock: a call still waiting then is not run. `caller` is who shares the
        machine fairly with the others of its priority. Raises `InvalidInput` for inputs that fit no run,
        `Overloaded` when there is no room, or when those before it make it late, `NotReady` when closing,
        `DeadlineExceeded`, and `ModelError` when its run fails. Cancelling it disturbs no one.
        """
        rows = self._rows(inputs)
        if self._closing:
            raise NotReady("the service is stopping")
        displaced = self.admission.let_in(rows, deadline, priority, caller)
        now = self._clock()
        if self._may_run_inline(rows):
            self._on_run(rows)
            outputs = self._engine.compute(inputs)
            return Batched(outputs, 0.0, self._ran(rows, outputs, now))
        for other in displaced:
            self.admission.refuse(other, f"{rows} samples were let in instead", "displaced")
        self._leave(displaced)
        loop = asyncio.get_running_loop()
        waiter = Waiter(inputs, rows, deadline, now, loop.create_future(), priority, caller)
        self._line.add(waiter)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work(), name=f"batcher {self._engine.name}")
        self._changed.set()
        try:
            return await waiter.future
        finally:
            if waiter.waits:  # cancelled before it was taken
                self._leave([waiter])

    def retire(self) -> None:
        """Another version is served from now on: answer who has taken this one, and keep nothing running."""
        self._retired = True
        self._changed.set()

    async def close(self) -> None:
        """Refuse new calls, answer those that wait, and return when the last run has ended."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    def _leave(self, waiters: list[Waiter]) -> None:
        for waiter in waiters:
            waiter.waits = False
        if waiters:
            self._line.leave(waiters)

    def _may_run_inline(self, rows: int) -> bool:
        if self._line or self._running or self._window_s or not self._inline_s:
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
        while self._line or not (self._closing or self._retired):
            if not self._line:
                self._changed.clear()
                await self._changed.wait()
            elif not await self._company_comes():
                batch = self._take()
                if batch:
                    await self._run(batch)

    async def _company_comes(self) -> bool:
        """Wait for another call, as long as the window of the oldest one allows; False when it is time."""
        if not self._window_s or self._closing:
            return False
        left = min(waiter.enqueued for waiter in self._line) + self._window_s - self._clock()
        if left <= 0 or self._alike() >= self._max_batch_size:
            return False
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._changed.wait()
        return True

    def _take(self) -> list[Waiter]:
        """The next call and those after it that fit into one run with it, taken off the line.

        A call joins when that pays, and when neither it nor those before it would be late for that.
        """
        batch: list[Waiter] = []
        gone: list[Waiter] = []
        now, room, rows, first_deadline = self._clock(), self._room(), 0, math.inf
        for waiter in self._line:
            earliest = min(first_deadline, waiter.deadline)
            if waiter.future.done():
                gone.append(waiter)
            elif self.admission.is_hopeless(waiter.rows, waiter.deadline, now):
                self.admission.expire(waiter, now)
                gone.append(waiter)
            elif not batch or (
                waiter.kind == batch[0].kind
                and rows + waiter.rows <= room
                and now + (self.cost.seconds(rows + waiter.rows) or 0.0) <= earliest
            ):
                batch.append(waiter)
                rows += waiter.rows
                first_deadline = earliest
        self._leave(gone)
        if batch:
            for waiter in batch:
                waiter.waits = False
            self._line.take(batch)
        return batch

    def _room(self) -> int:
        """How many samples the next run may take: until the cost of a batch is known, as many as wait."""
        return self.cost.best(self._alike(), self._max_batch_size) if self.cost.told else self._max_batch_size

    def _alike(self) -> int:
        """The samples that could share a run with the next call, and it itself."""
        kind = next(iter(self._line)).kind
        return sum(waiter.rows for waiter in self._line if waiter.kind == kind)

    async def _run(self, batch: list[Waiter]) -> None:
        started = self._clock()
        rows = sum(waiter.rows for waiter in batch)
        self._on_run(rows)
        loop = asyncio.get_running_loop()
        self._running = True
        self.admission.began(rows, started)
        try:
            outputs = await loop.run_in_executor(self._executor, self._engine.compute, _join(batch))
            infer_s = self._ran(rows, outputs, started)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            if isinstance(error, InvalidInput) and len(batch) > 1:
                await self._run_apart(batch)
                return
            for waiter in batch:
                if not waiter.future.done():
                    waiter.future.set_exception(error)
            return
        finally:
            self._running = False
            self.admission.ended()
        at = 0
        for waiter in batch:
            own = {name: array[at : at + waiter.rows] for name, array in outputs.items()}
            at += waiter.rows
            if not waiter.future.done():
                waiter.future.set_result(Batched(own, started - waiter.enqueued, infer_s))
                self.admission.answered(waiter, infer_s)

    async def _run_apart(self, batch: list[Waiter]) -> None:
        """A run of its own for each: the values of one are to blame, and the others shall not pay for it."""
        for waiter in batch:
            if not waiter.future.done():
                await self._run([waiter])

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


def _join(batch: list[Waiter]) -> Tensors:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([waiter.inputs[name] for waiter in batch]) for name in batch[0].inputs}
