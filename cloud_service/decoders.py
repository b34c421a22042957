"""Decodes what models take instead of their tensors, on threads: by priority, and fair to callers."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from cloud_service.decoding import Decoder
from inference_core.errors import DeadlineExceeded
from inference_core.line import Line
from inference_core.priority import Priority
from inference_core.tensors import Tensors


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
            await self._turn(_Turn(priority, caller, _bytes(inputs), asyncio.Future()))
        try:
            if self._clock() > deadline:
                raise DeadlineExceeded("the deadline passed before its input could be decoded")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, decoder.decode, inputs)
        finally:
            self._next()

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


def _bytes(inputs: Tensors) -> float:
    return float(sum(len(item) for array in inputs.values() if array.dtype == object for item in array.flat))
