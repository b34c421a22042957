"""Who waits for a run of a model, and what a run that several share gives to each."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inference_core.batch_cost import BatchCost
from inference_core.engine import Engine
from inference_core.priority import Priority
from inference_core.tensors import Tensors


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
class Waiting:
    """A caller; `work` are the seconds that its run is expected to take of one worker. Who is `alone` shares
    no run. `patience` is until when it waits for a run that takes far too long, `timer` sees to that, or to
    its deadline while it has none."""

    model: Timed
    inputs: Tensors
    since: float
    deadline: float
    priority: Priority
    work: float
    future: asyncio.Future[Run]
    caller: str = ""
    tag: float = 0.0
    alone: bool = False
    patience: float = math.inf
    timer: asyncio.TimerHandle | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Only inputs of the same shapes can be joined: a model may leave any axis free."""
        return [self.inputs[name].shape for name in sorted(self.inputs)]

    def joins(self, first: "Waiting") -> bool:
        """Whether it may share that one's run."""
        alike = self.model is first.model and self.shapes == first.shapes
        return alike and not self.alone and not self.future.done()

    def has_become_late(self, now: float) -> bool:
        """Whether it would have been in time without the wait, and cannot be now."""
        seconds = self.model.cost.seconds(1) or 0.0
        return self.since + seconds <= self.deadline < now + seconds

    def set_timer(self, delay: float, act: Callable[["Waiting"], object]) -> None:
        """`act` in so many seconds, in place of what was to happen before; never where they are infinite."""
        self.stop_timer()
        if delay < math.inf:
            self.timer = asyncio.get_running_loop().call_later(delay, act, self)

    def stop_timer(self) -> None:
        """Nothing is to happen any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def joined(batch: list[Waiting]) -> Tensors:
    """The inputs of one run for all of them."""
    first = batch[0].inputs
    if len(batch) == 1:
        return first
    return {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in first}


def share(batch: list[Waiting], started: float, outputs: Tensors, seconds: float) -> None:
    """Give everyone the row that is theirs."""
    samples = len(batch)
    batch[0].model.ran(samples, seconds)
    for row, waiting in enumerate(batch):
        if not waiting.future.done():
            own = {name: array[row : row + 1] for name, array in outputs.items()} if samples > 1 else outputs
            waiting.future.set_result(Run(own, started - waiting.since, seconds, samples))


def fail(batch: list[Waiting], error: BaseException) -> None:
    """Tell everyone of it who still waits."""
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
