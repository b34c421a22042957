"""What the system tells the process: SIGTERM and SIGINT to end, SIGHUP to reload."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

CLOSE_S = 2.0  # what each part gets to close, beside what requests in flight get
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Signals:
    """Takes the signals of the running loop's process from its making on."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, _log.warning, "not reloaded: the models are still loading")

    def on_hangup(self, reload: Callable[[], object]) -> None:
        """From now on a SIGHUP calls `reload`."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    async def unless_stopping(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """What `work` gives; None, and `work` is cancelled, when the process is told to end before that."""
        loop = asyncio.get_running_loop()
        working, told = loop.create_task(work), loop.create_task(self.stopping.wait())
        await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
        ended = working.done()
        for task in (working, told):
            task.cancel()
        await asyncio.wait({working, told})
        return working.result() if ended else None

    def _stop(self, number: signal.Signals) -> None:
        if self.stopping.is_set():
            _log.error("a second %s: ending at once, without waiting for anything", number.name)
            end(128 + number, orderly=False)
        self.stopping.set()


async def together(*works: Awaitable[object]) -> None:
    """Wait for all of these."""
    await asyncio.gather(*works)


def end(status: int, *, orderly: bool) -> int:
    """`status`, for who ends in order; else the process ends here, whatever its threads are doing.

    A thread inside ONNX Runtime would bring an orderly end down.
    """
    if not orderly:
        logging.shutdown()
        os._exit(status)
    return status


async def within(limit_s: float, what: str, work: Coroutine[Any, Any, object]) -> None:
    """Wait for `work`, the end of `what`, so many seconds at most; then go on without."""
    try:
        await asyncio.wait_for(work, limit_s)
    except TimeoutError:
        _log.warning("%s did not end within %.1f s; going on without", what, limit_s)
