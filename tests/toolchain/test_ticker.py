"""What is said on a terminal and elsewhere."""

import io

from rich.console import Console

from toolchain.ticker import Ticker


def said(terminal: bool) -> str:
    """What a ticker writes that says two lines and shows one in between."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with Ticker(console) as ticker:
        ticker.say("first")
        ticker.show("at [1/2]")
        ticker.say("second [bold]")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_only_whole_lines_are_written() -> None:
    assert said(terminal=False) == "first\nsecond [bold]\n"


def test_a_terminal_also_gets_the_changing_line() -> None:
    text = said(terminal=True)
    assert "at [1/2]" in text
    assert text.index("first") < text.index("at [1/2]") < text.index("second [bold]")
