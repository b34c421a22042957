"""Decodes what models take instead of their tensors, on threads: by priority, and fair to callers."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from cloud_service.decoding import Decoder
from inference_core.errors import DeadlineExceeded
from inference_core.line import Line
from inference_core.priority import Priority
from inference_core.tensors import Tensors

_LEAST_BYTES = 4096


@dataclass(eq=False)
class _Turn:
    """Someone who waits for a thread; `work` are bytes to decode."""

    priority: Priority
    caller: str
    work: float
    granted: asyncio.Future[None]
    tag: float = 0.0


class Decoders:
    """The threads of one process that decode."""

    def __init__(self, executor: Executor, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`executor` has so many `threads`; `clock` is monotonic, in seconds."""
        self._executor = executor
        self._free = threads
        self._clock = clock
        self._line: Line[_Turn] = Line()

    @property
    def waiting(self) -> int:
        """How many wait for a thread."""
        return len(self._line)

    async def decode(
        self,
        decoder: Decoder,
        inputs: Tensors,
        deadline: float,
        *,
        priority: Priority = Priority.NORMAL,
        caller: str = "",
    ) -> Tensors:
        """What `decoder` makes of `inputs`, when it is the caller's turn.

        Raises what `decoder` raises, and `DeadlineExceeded` when the turn comes after `deadline`, a time on
        the clock. Cancelling it disturbs no one.
        """
        if self._free:
            self._free -= 1
        else:
            await self._turn(_Turn(priority, caller, _work(inputs), asyncio.Future()))
        if self._clock() > deadline:
            self._next()
            raise DeadlineExceeded("the deadline passed before its input could be decoded")
        job = self._executor.submit(decoder.decode, inputs)
        # The thread is free when the job has ended, whoever still waits for it.
        job.add_done_callback(partial(_call_soon, asyncio.get_running_loop(), self._next))
        return await asyncio.wrap_future(job)

    async def _turn(self, turn: _Turn) -> None:
        self._line.add(turn)
        try:
            await turn.granted
        except asyncio.CancelledError:
            if turn.granted.done() and not turn.granted.cancelled():
                self._next()  # it was granted just then
            else:
                self._line.leave([turn])
            raise

    def _next(self) -> None:
        """A thread is free: it is for who waits, or for who comes."""
        while (turn := next(iter(self._line), None)) is not None:
            self._line.take([turn])
            if not turn.granted.done():  # it may have been cancelled just then
                turn.granted.set_result(None)
                return
        self._free += 1


def _call_soon(loop: asyncio.AbstractEventLoop, act: Callable[[], object], _: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
        loop.call_soon_threadsafe(act)


def _work(inputs: Tensors) -> float:
    """What decoding is taken to cost, in bytes: a small image may be as much work as one of some kB."""
    items = [item for array in inputs.values() if array.dtype == object for item in array.flat]
    return float(sum(max(len(item), _LEAST_BYTES) for item in items) or _LEAST_BYTES)
