"""The machine: its cores as this process has them, and its processor's name in one line."""

import os

import pytest

from toolchain.machine import cores, processor, processor_in


def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    assert cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some  CPU @ 2.0GHz\nmodel name\t: Other\n", "Some CPU @ 2.0GHz"),
        ("model name : a\x07b\x1bc\n", "a b c"),
        ("model\t: 85\nvendor_id : x\n", ""),
        ("", ""),
    ],
)
def test_the_processor_is_named_by_the_first_line_that_names_one(facts: str, name: str) -> None:
    assert processor_in(facts) == name


def test_every_processor_has_some_name_of_one_line() -> None:
    assert processor()
    assert processor().isprintable()
