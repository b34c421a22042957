"""Progress on standard error, for work that turns out to take longer than a moment."""

import time
from collections.abc import Collection, Generator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 2.0
_LINES_S = 10.0  # between two lines where there is no terminal to draw a bar on

Item = TypeVar("Item")

_showing: list[str] = []  # the loop that reports, if any: those inside it stay silent


def track(items: Collection[Item], what: str) -> Generator[Item, None, None]:
    """Yield `items`; progress called `what` appears once they have taken `PATIENCE_S` seconds.

    A terminal gets a bar that disappears at the end, a file or a pipe a line now and then.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=len(items))
    due, mine = time.monotonic() + PATIENCE_S, False
    try:
        for done, item in enumerate(items):
            if (mine or not _showing) and time.monotonic() > due:
                due = time.monotonic() + _LINES_S
                if not mine:
                    mine = True
                    _showing.append(what)
                    if console.is_terminal:
                        bar.start()
                if not console.is_terminal:
                    console.print(f"{what}: {done} of {len(items)}", highlight=False)
            bar.update(task, completed=done)
            yield item
    finally:
        if mine:
            _showing.remove(what)
        if bar.live.is_started:
            bar.stop()
