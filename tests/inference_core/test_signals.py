"""What the system tells the process, and waits that have a limit."""

import asyncio
import os
import signal

import pytest

from inference_core.signals import Signals, end, together, within

pytestmark = pytest.mark.anyio


async def turn(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    signals = Signals()
    os.kill(os.getpid(), number)
    await turn(signals.stopping)


async def test_a_hangup_reloads_once_it_may(caplog: pytest.LogCaptureFixture) -> None:
    signals, asked = Signals(), asyncio.Event()
    os.kill(os.getpid(), signal.SIGHUP)
    async with asyncio.timeout(5):
        while "not reloaded: the models are still loading" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0)
    signals.on_hangup(asked.set)
    os.kill(os.getpid(), signal.SIGHUP)
    await turn(asked)


async def test_work_ends_with_its_result_its_error_or_the_signal() -> None:
    async def work(result: int) -> int:
        return 1 // result

    async def forever() -> bool:
        return await asyncio.Event().wait()

    signals = Signals()
    assert await signals.unless_stopping(work(1)) == 1
    with pytest.raises(ZeroDivisionError):
        await signals.unless_stopping(work(0))
    signals.stopping.set()
    assert await signals.unless_stopping(forever()) is None
    assert [task.get_name() for task in asyncio.all_tasks() if "forever" in repr(task)] == []


async def test_nothing_is_waited_for_without_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await within(0.02, "the outbox", forever())
        await within(5, "the cloud", together(asyncio.sleep(0), asyncio.sleep(0)))
    assert [record.getMessage() for record in caplog.records] == [
        "the outbox did not end within 0.0 s; going on without"
    ]


def test_who_ends_in_order_has_its_status() -> None:
    assert end(1, orderly=True) == 1
