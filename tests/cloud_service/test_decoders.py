"""Whose inputs are decoded next, and that every thread comes back whatever becomes of a call."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cloud_service.decoders import Decoders
from inference_core.engine import TensorSpec
from inference_core.errors import DeadlineExceeded, InvalidInput
from inference_core.priority import Priority
from inference_core.tensors import Tensors, objects

pytestmark = pytest.mark.anyio
PATIENCE_S = 10.0


class Gated:
    """Decodes when it is let: notes in which order, and refuses what says so."""

    inputs: tuple[TensorSpec, ...] = ()

    def __init__(self) -> None:
        self.order: list[bytes] = []
        self.gate = threading.Semaphore(0)

    def decode(self, inputs: Tensors) -> Tensors:
        (name,) = inputs["image"]
        self.order.append(name)
        assert self.gate.acquire(timeout=PATIENCE_S)
        if name == b"broken":
            raise InvalidInput("broken")
        return {"x": np.zeros(1)}


class Rig:
    """Decoders on so many threads, and calls to them."""

    def __init__(self, threads: int) -> None:
        self.now = 0.0
        self.gated = Gated()
        self.executor = ThreadPoolExecutor(threads)
        self.decoders = Decoders(self.executor, threads, clock=lambda: self.now)
        self.calls: list[asyncio.Task[Tensors]] = []

    def ask(self, name: str, caller: str = "a", deadline: float = 60.0, **turn: Any) -> asyncio.Task[Tensors]:
        inputs: Tensors = {"image": objects([name.encode()])}
        call = self.decoders.decode(self.gated, inputs, deadline, caller=caller, **turn)
        self.calls.append(asyncio.create_task(call))
        return self.calls[-1]

    async def until(self, *, begun: int = 0, waiting: int = 0) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (len(self.gated.order), self.decoders.waiting) != (begun, waiting):  # noqa: ASYNC110 - not an event
                await asyncio.sleep(0.001)

    async def end(self) -> list[str]:
        """Let everything go on; in which order it was decoded."""
        for _ in self.calls:
            self.gated.gate.release()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self.calls, return_exceptions=True)
        return [name.decode() for name in self.gated.order]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig(1)
    yield made
    await made.end()
    # Whatever happened, the thread is free again and nobody is left in the line.
    made.calls.clear()
    made.ask("last", deadline=1e9)
    assert (await made.end())[-1] == "last"
    assert made.decoders.waiting == 0
    made.executor.shutdown()


async def test_a_greedy_caller_does_not_hold_up_the_others(rig: Rig) -> None:
    for number in range(9):
        rig.ask(f"a{number}", "greedy")
    await rig.until(begun=1, waiting=8)
    rig.ask("b0", "other")
    await rig.until(begun=1, waiting=9)
    order = await rig.end()
    assert order.index("b0") <= 2
    assert [name for name in order if name != "b0"] == [f"a{number}" for number in range(9)]


async def test_large_inputs_count_for_more(rig: Rig) -> None:
    rig.ask("first", "c")
    await rig.until(begun=1)
    for number in range(2):
        rig.ask(f"{number}" * 40_000, "large")
    for number in range(4):
        rig.ask(f"s{number}", "small")
    await rig.until(begun=1, waiting=6)
    order = await rig.end()
    assert order[-1] == "1" * 40_000


async def test_the_better_class_goes_first(rig: Rig) -> None:
    rig.ask("first")
    await rig.until(begun=1)
    rig.ask("background", priority=Priority.BACKGROUND)
    rig.ask("critical", priority=Priority.CRITICAL)
    await rig.until(begun=1, waiting=2)
    assert await rig.end() == ["first", "critical", "background"]


async def test_what_is_late_when_its_turn_comes_is_not_decoded(rig: Rig) -> None:
    rig.ask("first")
    await rig.until(begun=1)
    late, early = rig.ask("late", deadline=5.0), rig.ask("early", deadline=60.0)
    await rig.until(begun=1, waiting=2)
    rig.now = 10.0
    assert await rig.end() == ["first", "early"]
    with pytest.raises(DeadlineExceeded, match="before its input could be decoded"):
        await late
    assert "x" in await early


async def test_what_fails_gives_its_thread_back(rig: Rig) -> None:
    broken, good = rig.ask("broken"), rig.ask("good")
    assert await rig.end() == ["broken", "good"]
    with pytest.raises(InvalidInput):
        await broken
    assert "x" in await good


@pytest.mark.parametrize("at", ["in the line", "as its turn comes", "at work"])
async def test_who_hangs_up_disturbs_nobody(rig: Rig, at: str) -> None:
    first = rig.ask("first")
    await rig.until(begun=1)
    leaving, staying = rig.ask("leaving"), rig.ask("staying")
    await rig.until(begun=1, waiting=2)
    if at == "in the line":
        leaving.cancel()
    elif at == "at work":
        first.cancel()
        await asyncio.wait({first})
        await asyncio.sleep(0)
        assert (rig.decoders.waiting, len(rig.gated.order)) == (2, 1)  # its thread is not free yet
    else:
        # Both in one step of the loop: the turn is granted, and its caller does not live to see it.
        rig.decoders._next()
        leaving.cancel()
        await asyncio.wait({leaving})
        assert rig.decoders.waiting == 0  # it went on to who stays
        rig.decoders._free -= 1
    await rig.end()
    assert "x" in await staying
    with pytest.raises(asyncio.CancelledError):
        await (first if at == "at work" else leaving)


async def test_as_many_at_a_time_as_there_are_threads() -> None:
    rig = Rig(3)
    for number in range(7):
        rig.ask(str(number))
    await rig.until(begun=3, waiting=4)
    assert len(await rig.end()) == 7
    rig.executor.shutdown()
