"""Hedging: a second copy of a request that takes longer than most do, and the first answer wins.

After "The Tail at Scale" (Dean and Barroso, 2013): sent only after the 95th percentile of what answers take,
a second copy costs some five per cent more messages. `Hedging` is the rule and pure, `first_of` follows it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

BUDGET = 0.05  # of the requests
BURST = 5.0
QUANTILE = 0.95
_LEAST, _RECENT, _EVERY = 20, 128, 16
_T = TypeVar("_T")


class Hedging:
    """What answers took lately, and what is left of the budget."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=_RECENT)
        self._since = 0
        self._tokens = 1.0
        self.delay_s: float | None = None

    def request(self) -> None:
        """A request goes out: it earns its share of a second copy."""
        self._tokens = min(BURST, self._tokens + BUDGET)

    def answered(self, seconds: float) -> None:
        """An answer took so long. `delay_s` is what 95 % are sooner than, None until there are a few."""
        self._took.append(seconds)
        self._since += 1
        if len(self._took) >= _LEAST and (self.delay_s is None or self._since >= _EVERY):
            self._since = 0
            self.delay_s = sorted(self._took)[int(QUANTILE * len(self._took))]

    def spend(self) -> bool:
        """Whether the budget has a second copy left; takes it."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


async def first_of(
    first: Coroutine[Any, Any, _T], delay_s: float, second: Callable[[], Coroutine[Any, Any, _T] | None]
) -> _T:
    """The result of `first`; or, where it takes longer than `delay_s` seconds and `second` gives another, of
    the one that has an answer first. The other is cancelled. Raises what the last to fail has raised."""
    tasks = [asyncio.create_task(first)]
    try:
        await asyncio.wait(tasks, timeout=delay_s)
        if not tasks[0].done() and (other := second()) is not None:
            tasks.append(asyncio.create_task(other))
        running = set(tasks)
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            answered = [task for task in done if task.exception() is None]
            if answered or not running:
                return (answered or list(done))[0].result()
    finally:
        for task in tasks:
            task.cancel()
