"""Progress: a bar on a terminal, once work takes a moment, one at a time; elsewhere nothing."""

import os
import pty
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from toolchain import progress
from toolchain.progress import track

SHOW_CURSOR = "\x1b[?25h"


def _on_terminal(code: str) -> str:
    """What Python code that begins with `track` imported writes to a terminal."""
    start = "from toolchain import progress\nfrom toolchain.progress import track\nprogress.PATIENCE_S = -1\n"
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", start + code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=writing,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(writing)
    said = ""
    while more := _read(reading):
        said += more
    os.close(reading)
    assert process.wait(30) == 0, said
    return said


def _read(reading: int) -> str:
    try:
        return os.read(reading, 4096).decode()
    except OSError:  # how a terminal says that nobody writes to it any more
        return ""


def test_elsewhere_nothing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    assert list(track(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_quick_work_says_nothing_on_a_terminal_either() -> None:
    assert _on_terminal("progress.PATIENCE_S = 60\nlist(track(range(3), 'counting'))") == ""


def test_slow_work_shows_a_bar_and_silences_what_it_contains() -> None:
    said = _on_terminal("for _ in track(range(3), 'outer'):\n    list(track(range(3), 'inner'))")
    assert "outer" in said
    assert "/3" in said
    assert "inner" not in said


def test_an_abandoned_loop_lets_the_next_one_report() -> None:
    said = _on_terminal(
        "first = track(range(3), 'first')\nnext(first)\nfirst.close()\nlist(track(range(2), 'second'))"
    )
    assert "first" in said
    assert "second" in said


def test_an_error_in_the_loop_takes_the_bar_away() -> None:
    said = _on_terminal(
        "try:\n    for item in track(range(3), 'failing'):\n        1 / 0\n"
        "except ZeroDivisionError:\n    pass\n"
        "list(track(range(2), 'next'))"
    )
    assert "next" in said
    assert (
        said.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in said.rpartition("next")[2]
    )  # the cursor is back


def test_a_refusal_is_said_when_the_bar_is_gone() -> None:
    said = _on_terminal(
        "from inference_core.errors import InvalidInput\n"
        "from toolchain import __main__ as command\n"
        "def app(*_, **__):\n"
        "    for item in track(range(3), 'failing'):\n"
        "        raise InvalidInput('no good')\n"
        "command.app = app\n"
        "try:\n    command.main()\nexcept SystemExit as ended:\n    assert ended.code == 2\n"
    )
    shown, _, rest = said.partition("tandem: no good")
    assert SHOW_CURSOR in shown.rpartition("failing")[2]
    assert "failing" not in rest


def test_items_are_taken_one_by_one() -> None:
    class Counted(list[int]):
        taken = 0

        def __iter__(self) -> Iterator[int]:
            for item in super().__iter__():
                self.taken += 1
                yield item

    items = Counted([1, 2, 3])
    loop = track(items, "counting")
    assert next(loop) == 1
    assert items.taken == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.close()
