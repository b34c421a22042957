"""The table itself: what counts as held, what fails a run, and that long runs can be made in parts."""

from pathlib import Path

import pytest

from tests.faults.row import TRIES, measured
from tests.faults.table import HEAD, Case, Finding, markdown, unfinished, write

HELD = Finding(50, 0, "p99 2 ms")
RED = Finding(50, 3, "3 lost")


@pytest.mark.parametrize(
    ("finding", "held", "bound"),
    [
        (HELD, True, "0.06"),
        (Finding(10_000, 0, ""), True, "0.0003"),
        (RED, False, "-"),
        (Finding(50, 0, "", ("p99 is over 5 ms",)), False, "0.06"),
        (Finding(0, 0, ""), False, "-"),
    ],
)
def test_a_finding_holds_when_nothing_failed_in_some_trials(finding: Finding, held: bool, bound: str) -> None:
    assert finding.held is held
    assert finding.bound == bound


@pytest.mark.parametrize(
    ("found", "twin", "says"),
    [
        (HELD, RED, []),
        (RED, RED, ["3 of 50 failed"]),
        (HELD, HELD, ["stayed green"]),
        (HELD, Finding(0, 0, ""), ["was not run"]),
        (Finding(5, 0, "", ("too slow",)), HELD, ["too slow", "stayed green"]),
    ],
)
def test_a_row_fails_the_run_when_it_broke_or_its_twin_did_not(
    found: Finding, twin: Finding, says: list[str]
) -> None:
    faults = Case("cloud silent", found, twin, "the breaker").faults()
    assert len(faults) == len(says)
    assert all(text in fault for text, fault in zip(says, faults, strict=True))


def test_the_table_has_one_line_for_each_row() -> None:
    rows = [Case("cloud | silent", HELD, RED, "the breaker").cells(5), unfinished("kill -9", 5, "boom\nbang")]
    lines = markdown(rows).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[2].count(" | ") == len(HEAD) - 1
    assert "red without the breaker: 3 of 50 failed, 3 lost" in lines[2]
    assert "boom bang" in lines[3]


def test_rows_of_an_earlier_run_stay_until_they_are_run_again(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    write(path, [Case("one", RED, RED, "x").cells(5), Case("two", HELD, RED, "x").cells(5)])
    write(path, [Case("one", HELD, RED, "x").cells(6), Case("three", HELD, RED, "x").cells(6)])
    found = [line.split("|")[1].strip() for line in path.read_text().splitlines()[2:]]
    assert found == ["one", "two", "three"]
    assert "NO" not in path.read_text()


SLOW = Finding(50, 0, "p99 9 ms", ("p99 9 ms",))


@pytest.mark.parametrize(
    ("found", "verdict", "tries"),
    [
        ([HELD], "yes", 1),
        ([SLOW, HELD], "yes, at try 2", 2),
        ([SLOW] * TRIES, "NO: p99 9 ms", TRIES),
        ([RED, HELD], "NO", 1),
        ([SLOW, RED, HELD], "NO", 2),
    ],
)
def test_what_may_be_the_machines_doing_is_measured_again(
    found: list[Finding], verdict: str, tries: int
) -> None:
    left = iter(found)
    (case,) = measured(lambda: [Case("slow", next(left), RED, "x")])
    assert case.cells(5)[HEAD.index("held")] == verdict
    assert case.tries == tries
