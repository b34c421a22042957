"""Files are taken again when they have changed and have come to rest, and only if they make sense."""

import asyncio
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.watch import Settling, Watch, signature

BRISK_S = 0.01


@given(st.lists(st.integers(0, 3), max_size=30))
def test_it_reads_what_two_looks_have_seen_and_nothing_twice(states: list[int]) -> None:
    first = ((0, 0, 0),)
    settling, read, before = Settling(first), 0, 0
    for state in states:
        wanted = state == before and state != read
        assert settling.look(((state, 0, 0),)) is wanted
        if wanted:
            read = state
        before = state


def test_a_file_that_comes_goes_or_is_replaced_is_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    missing = signature([path])
    path.write_text("a")
    there = signature([path])
    beside = tmp_path / "beside"
    beside.write_text("b")
    os.utime(beside, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    beside.replace(path)
    assert len({missing, there, signature([path])}) == 3


async def until(found: list[str], count: int) -> None:
    async with asyncio.timeout(5):
        while len(found) < count:  # noqa: ASYNC110
            await asyncio.sleep(BRISK_S / 2)


def test_what_cannot_be_used_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, taken, looks = tmp_path / "word", list[str](), list[str]()
    path.write_text("one")

    def read() -> str:
        text = path.read_text()
        if not text.isalpha():
            raise ValueError(f"{path}: {text!r} is no word")
        return text

    async def run() -> None:
        watch = Watch("the word", [path], read, taken.append, lambda: looks.append("look"), BRISK_S)
        watch.start()
        path.write_text("two")
        await until(taken, 1)
        path.write_text("3")
        await until(looks, len(looks) + 10)
        path.write_text("four")
        await until(taken, 2)
        await watch.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert taken == ["two", "four"]
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "'3' is no word" in errors[0]


def test_a_look_that_fails_is_not_the_last_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, taken = tmp_path / "word", list[str]()
    path.write_text("one")

    def use(text: str) -> None:
        taken.append(text)
        if text == "two":
            raise RuntimeError("can't start new thread")

    async def run() -> None:
        watch = Watch("the word", [path], path.read_text, use, interval_s=BRISK_S)
        watch.start()
        for count, text in enumerate(("two", "three!"), 1):
            path.write_text(text)
            await until(taken, count)
        await watch.close()

    asyncio.run(run())
    assert taken == ["two", "three!"]
    assert "the word could not be looked at" in caplog.text
