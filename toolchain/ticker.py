"""What a long command says while it works: lines that stay and, on a terminal, one that changes."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

_INTERVAL_S = 0.2


class Ticker:
    """Says things on `console`; `with` takes the changing line away at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Drawn when there is news, and not by a thread: that would take turns with what is measured.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print `line`, on a terminal or not."""
        self._console.print(Text(line), soft_wrap=True)

    def show(self, line: str) -> None:
        """Put `line` in the place of the changing one, a few times a second; only a terminal shows it."""
        now = time.monotonic()
        if self._live.is_started and now - self._shown_at >= _INTERVAL_S:
            self._shown_at = now
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
