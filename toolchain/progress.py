"""Progress on standard error, for work that turns out to take longer than a moment."""

import time
from collections.abc import Collection, Generator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 2.0

Item = TypeVar("Item")

_showing: list[Progress] = []  # the bar of the loop that reports, if any: those inside it stay silent


def track(items: Collection[Item], what: str) -> Generator[Item, None, None]:
    """Yield `items`; on a terminal a bar called `what` appears once they have taken `PATIENCE_S` seconds.

    It disappears at the end. A file or a pipe gets nothing.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=len(items))
    due = time.monotonic() + PATIENCE_S
    try:
        for done, item in enumerate(items):
            if not _showing and time.monotonic() > due:
                _showing.append(bar)
                bar.start()
            bar.update(task, completed=done)
            yield item
    finally:
        if bar in _showing:
            _showing.remove(bar)
            bar.stop()
