"""Progress on standard error, for work that turns out to take longer than a moment."""

import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 2.0

Item = TypeVar("Item")


def track(items: Collection[Item], what: str) -> Iterator[Item]:
    """Yield `items`; a bar labelled `what` appears once they have taken `PATIENCE_S` seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=len(items))
    started, shown = time.monotonic(), False
    try:
        for done, item in enumerate(items):
            if not shown and time.monotonic() - started > PATIENCE_S:
                bar.start()
                shown = True
            bar.update(task, completed=done)
            yield item
    finally:
        if shown:
            bar.stop()
