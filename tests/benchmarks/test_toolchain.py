"""The benchmark of the toolchain: what it runs is measured, and what it prints is a table."""

import sys

import pytest

from benchmarks.toolchain import Row, markdown, watch


def test_a_command_is_timed_and_its_memory_seen() -> None:
    seconds, peak = watch([sys.executable, "-c", "x = bytearray(200 << 20); sum(range(60_000_000))"])
    assert 0.2 < seconds < 60
    assert peak > 200 << 20


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="ended with status 7"):
        watch([sys.executable, "-c", "raise SystemExit(7)"])


def test_the_page_says_what_was_missed() -> None:
    page = markdown([Row("a", "1", "2", met=False), Row("b", "3", "3", met=True)])
    assert page.splitlines()[2:] == ["| a | 1 | 2 | no |", "| b | 3 | 3 | yes |"]
