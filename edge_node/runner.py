"""Runs models for everyone who waits: by priority, and in each class first come, first served.

Who has waited so long that the answer would be late is refused instead of run. A short run happens on the
event loop itself: to hand it to a thread and back would cost more than it saves. Longer ones go to the pool,
as many at a time as it has workers; nobody waits there for a run that does not end. Which is which was
measured at load. Where several wait for the same model and `BatchCost` says that it pays, they share a run.
"""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from edge_node.waiting import Run, Timed, Waiting, fail, joined, share
from inference_core.errors import InvalidInput, ModelError, NotReady, Overloaded
from inference_core.line import Line
from inference_core.priority import Priority
from inference_core.tensors import Tensors

_STOPPING = "the service is stopping"
# What runs may take of one turn of the loop, before it reads again: so that who came first is known.
_TURN_S = 0.0005
OVERDUE = 10  # times as long as it was expected to take, a run is not waited for by who cannot wait longer


class Runner:
    """One event loop's runs."""

    def __init__(self, executor: Executor, *, workers: int, clock: Callable[[], float]) -> None:
        """`executor` is the pool, `workers` how many of its threads run models; `clock` is monotonic, in
        seconds."""
        self._executor = executor
        self._workers = workers
        self._clock = clock
        self._inline: Line[Waiting] = Line()
        self._pooled: Line[Waiting] = Line()
        # Of each run on the pool: when it is expected to end, and from when on nobody knows.
        self._ends: dict[asyncio.Future[tuple[float, Tensors, float]], tuple[float, float]] = {}
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

    def count(self, priority: Priority) -> int:
        """How many of this class wait for a run."""
        return self._inline.count(priority) + self._pooled.count(priority)

    def wait_s(self, model: Timed, priority: Priority) -> float:
        """The seconds until a sample of this class that came now would be run, as runs have been."""
        if model.inline:
            return self._inline.ahead(priority) if self._inline else 0.0
        if not self._pooled and len(self._ends) < self._workers:
            return 0.0
        return self._pool_s(self._pooled.ahead(priority))

    @property
    def drain_s(self) -> float:
        """The seconds until everyone who waits now has had a run."""
        return self._inline.work + self._pool_s(self._pooled.work)

    def displace(self, priority: Priority) -> bool:
        """Refuse one of a lower class, the newest of the least that waits; False where there is none."""
        for line in (self._pooled, self._inline):
            while going := line.displaced(priority, "", 0.0, math.ulp(0.0)):
                line.leave(going)
                if all(waiting.future.done() for waiting in going):
                    continue  # its caller has hung up: that makes no room
                error = Overloaded(
                    f"a {priority.value} request was let in instead", self.drain_s, "displaced"
                )
                fail(going, error)
                return True
        return False

    async def run(
        self,
        model: Timed,
        inputs: Tensors,
        *,
        deadline: float = math.inf,
        priority: Priority = Priority.NORMAL,
        at_once: bool = False,
        patience: float = math.inf,
    ) -> Run:
        """Run one sample, whose inputs have been checked, before others of its class if `at_once`.

        Raises `ModelError`, and `Overloaded` when those before it make it late: `deadline` is a time on the
        clock. So is `patience`: from then on, a run on the pool that takes `OVERDUE` times as long as
        expected is a `ModelError` too, although it goes on. Cancelling disturbs no one.
        """
        if not model.inline:
            waiting = self._line_up(self._pooled, model, inputs, deadline, priority, at_once)
            waiting.patience = patience
            self._arm(waiting)
            try:
                self._fill_pool()
                return await waiting.future
            except asyncio.CancelledError:
                self._pooled.leave([waiting])
                raise
            finally:
                waiting.stop_timer()
        self._arrived += 1
        if not self._turn_ends:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._end_turn)
        gathering = self._crowd > 1 and model.cost.pays(2)
        if self._inline or gathering or self._spent_s >= _TURN_S:
            return await self._line_up(self._inline, model, inputs, deadline, priority, at_once).future
        outputs, seconds = self._compute(model, inputs)
        self._spent_s += seconds
        model.ran(1, seconds)
        return Run(outputs, 0.0, seconds, 1)

    def _line_up(
        self,
        line: Line[Waiting],
        model: Timed,
        inputs: Tensors,
        deadline: float,
        priority: Priority,
        at_once: bool,
    ) -> Waiting:
        future: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        work = model.cost.each(model.max_batch) or 0.0
        waiting = Waiting(model, inputs, self._clock(), deadline, priority, work, future)
        line.add(waiting, at_once=at_once)
        return waiting

    def _pool_s(self, work: float) -> float:
        """The seconds until the pool has done what is under way and so much `work`, by the workers whose runs
        end. Where none does, the first is taken to be as late again as it is."""
        now = self._clock()
        left = [max(end - now, 0.0) for end, unknown in self._ends.values() if now < unknown]
        able = self._workers - len(self._ends) + len(left)
        if able:
            return (work + sum(left)) / able
        return work / self._workers + min(now - end for end, _ in self._ends.values())

    def _end_turn(self) -> None:
        """Begin the next turn's runs with those who wait; what then is left of the turn is for who comes."""
        self._turn_ends = False
        self._crowd, self._arrived, self._spent_s = self._arrived or self._crowd, 0, 0.0
        while self._spent_s < _TURN_S and (batch := self._take(self._inline)):
            started = self._clock()
            try:
                ran = self._attempt(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
                self._lost(self._inline, batch, error)
            else:
                share(batch, *ran)
            self._spent_s += self._clock() - started
        if self._inline or self._spent_s:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _fill_pool(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._ends) < self._workers and (batch := self._take(self._pooled)):
            try:
                run = self._executor.submit(self._attempt, batch)
            except RuntimeError:  # the pool has been shut down: nobody else will be answered either
                fail(batch, NotReady(_STOPPING))
                continue
            job = asyncio.wrap_future(run, loop=loop)
            now, expected_s = self._clock(), batch[0].model.cost.seconds(len(batch))
            longest_s = math.inf if expected_s is None else OVERDUE * expected_s
            self._ends[job] = now + (expected_s or 0.0), now + longest_s
            job.add_done_callback(partial(self._ended, batch))
            for waiting in batch:
                delay = max(waiting.patience - now, OVERDUE * (expected_s or 0.0))
                waiting.set_timer(delay, partial(_give_up, run))

    def _attempt(self, batch: list[Waiting]) -> tuple[float, Tensors, float]:
        model, samples, started = batch[0].model, len(batch), self._clock()
        outputs, seconds = self._compute(model, joined(batch))
        for name, array in outputs.items() if samples > 1 else ():
            if array.shape[:1] != (samples,):
                raise ModelError(f"{model.engine.name}: output {name!r} has not {samples} rows")
        return started, outputs, seconds

    def _ended(self, batch: list[Waiting], job: asyncio.Future[tuple[float, Tensors, float]]) -> None:
        del self._ends[job]
        for waiting in batch:
            waiting.stop_timer()
        error = NotReady(_STOPPING) if job.cancelled() else job.exception()
        if error is None:
            share(batch, *job.result())
        else:
            self._lost(self._pooled, batch, error)
        self._fill_pool()

    def _lost(self, line: Line[Waiting], batch: list[Waiting], error: BaseException) -> None:
        """A run has failed. Where the values of one are to blame, each gets a run of its own."""
        if len(batch) == 1 or not isinstance(error, InvalidInput):
            fail(batch, error)
            return
        for waiting in batch:
            if waiting.future.done():
                continue
            waiting.alone = True
            line.add(waiting, at_once=True)
            if line is self._pooled:
                self._arm(waiting)

    def _take(self, line: Line[Waiting]) -> list[Waiting]:
        """The next who can still be in time, and as many of the same model as share the run with it."""
        if not line:
            return []
        now, gone, first = self._clock(), [], None
        for waiting in line:
            if not waiting.future.done():
                if not waiting.has_become_late(now):
                    first = waiting
                    break
                fail([waiting], self._too_late(waiting, now))
            gone.append(waiting)
        if gone:
            line.leave(gone)
        if first is None:
            return []
        batch = [first, *self._company(line, first, now)]
        line.take(batch)
        return batch

    def _arm(self, waiting: Waiting) -> None:
        """Nobody waits past the deadline for a run to begin: those before may not end for long."""
        usual_s = waiting.model.cost.seconds(1) or 0.0
        late = waiting.deadline - (usual_s / 2 if waiting.since + usual_s <= waiting.deadline else 0.0)
        waiting.set_timer(late - self._clock(), self._expire)

    def _expire(self, waiting: Waiting) -> None:
        if not waiting.future.done():
            self._pooled.leave([waiting])
            fail([waiting], self._too_late(waiting, self._clock()))

    def _too_late(self, waiting: Waiting, now: float) -> Overloaded:
        words = f"waited {now - waiting.since:.3f} s for a run, and would be late"
        return Overloaded(words, self.drain_s, "expired")

    def _company(self, line: Line[Waiting], first: Waiting, now: float) -> list[Waiting]:
        """Who shares a run with `first`: where that pays, and nobody is late for it."""
        model = first.model
        if len(line) == 1 or model.max_batch == 1 or first.alone:
            return []
        alike = [other for other in line if other is not first and other.joins(first)]
        company = alike[: model.cost.best(len(alike) + 1, model.max_batch) - 1]
        if company:
            soonest = now + (model.cost.seconds(1) or 0.0)
            due = min((w.deadline for w in (first, *company) if w.deadline >= soonest), default=math.inf)
            while company and now + (model.cost.seconds(len(company) + 1) or 0.0) > due:
                company.pop()
        return company

    def _compute(self, model: Timed, inputs: Tensors) -> tuple[Tensors, float]:
        started = self._clock()
        outputs = model.engine.compute(inputs)
        return outputs, self._clock() - started


def _give_up(run: Future[Any], waiting: Waiting) -> None:
    if run.done():  # the loop was late, not the run: what came of it is on its way
        return
    model = waiting.model
    words = f"its run has not ended, {OVERDUE} times as long as usual after it began"
    fail([waiting], ModelError(f"{model.engine.name}: {words}"))
