"""The disk that the suite uses: it loses what was not synced, and only that, and fails when it is told to."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.panel import AFFECTED, Call, Disk, Panel
from tests.joint.services import ROOT


class Ledger:
    """The process that writes numbers, on a disk of the kind `kind`."""

    def __init__(self, folder: Path, kind: str, synchronous: str = "FULL") -> None:
        self.path = folder / "numbers.db"
        self.panel = Panel(folder / "panel")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.shim", str(folder / "panel"), kind, "tests.faults.ledger"],
            cwd=ROOT,
            env={**os.environ, "LEDGER": f"{self.path} {synchronous}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, number: int) -> str:
        """Ask for a number; `ok`, or the name of the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """Pull the plug."""
        self.process.kill()
        self.process.communicate()
        Path(f"{self.path}-shm").unlink(missing_ok=True)

    def numbers(self) -> set[int]:
        """What is on the disk, which must be whole."""
        with closing(sqlite3.connect(self.path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return {n for (n,) in connection.execute("SELECT n FROM numbers")}


@contextmanager
def ledger(folder: Path, kind: str, synchronous: str = "FULL") -> Iterator[Ledger]:
    """A ledger that is ended in any case."""
    writer = Ledger(folder, kind, synchronous)
    try:
        yield writer
    finally:
        writer.kill()


@pytest.mark.parametrize("kind", ["hold", "1", "2", "3"])
def test_what_was_synced_survives_the_loss_of_power(tmp_path: Path, kind: str) -> None:
    with ledger(tmp_path, kind) as writer:
        # More pages than the write-ahead log may hold before they are moved into the database.
        assert {writer.write(number) for number in range(1500)} == {"ok"}
    assert writer.numbers() == set(range(1500))


@pytest.mark.parametrize("kind", ["hold", "1", "2", "3"])
def test_what_was_not_synced_does_not(tmp_path: Path, kind: str) -> None:
    with ledger(tmp_path, kind, "NORMAL") as writer:
        assert {writer.write(number) for number in range(1500)} == {"ok"}
    numbers = writer.numbers()
    assert len(numbers) < 1500
    assert numbers == set(range(len(numbers))), "what is lost is the end"


def test_without_the_loss_of_power_nothing_is_lost(tmp_path: Path) -> None:
    with ledger(tmp_path, "pass", "NORMAL") as writer:
        assert {writer.write(number) for number in range(20)} == {"ok"}
    assert writer.numbers() == set(range(20))


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("disk", list(Disk))
def test_each_call_can_be_made_to_fail(tmp_path: Path, disk: Disk, forever: bool) -> None:
    errors = set()
    with ledger(tmp_path, "pass") as writer:
        writer.panel.arm(disk, 0, forever=False)
        assert writer.write(0) == "ok"
        calls = writer.panel.calls  # from opening to the first number
        assert calls > 10
        for nth in range(1, calls + 1):
            writer.panel.arm(disk, nth, forever=forever)
            said = writer.write(nth)
            failed = writer.panel.failed
            writer.panel.disarm()
            errors.add(said)
            if forever and failed:
                # The connection is there, so these few calls are all that one number takes.
                assert said != "ok"
            if said != "ok":
                assert writer.write(nth) in ("ok", "SQLITE_CONSTRAINT_PRIMARYKEY")
    assert writer.numbers() == set(range(calls + 1))
    assert len(errors) > 1


def test_a_disk_fails_only_what_it_affects(tmp_path: Path) -> None:
    panel = Panel(tmp_path / "panel")
    assert panel.fails(Call.WRITE) is None
    panel.arm(Disk.FULL, 2, forever=False)
    assert [panel.fails(call) for call in (Call.READ, Call.WRITE, Call.SYNC, Call.SYNC)] == [
        None,
        None,
        Disk.FULL,
        None,
    ]
    assert (panel.calls, panel.failed) == (3, 1)
    panel.arm(Disk.READ_ONLY, 1, forever=True)
    assert panel.fails(Call.WRITE) is panel.fails(Call.DELETE) is Disk.READ_ONLY
    assert Call.SYNC not in AFFECTED[Disk.READ_ONLY]
