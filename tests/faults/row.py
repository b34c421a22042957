"""What a test of the fault suite is told, and where it says what it found."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.faults.table import Case, unfinished

SEED = 5
TRIES = 3
_SAY_EVERY_S = 15.0


class Row:
    """What a test of the suite knows of its size and seed, and where it says what it found."""

    def __init__(self, request: pytest.FixtureRequest, rows: list[tuple[str, ...]]) -> None:
        config = request.config
        self.name = request.node.name
        self.torture = config.getoption("--size", "ci") == "torture"
        self.seed: int = config.getoption("--seed", SEED)
        self.random = random.Random(f"{self.seed} {self.name}")
        self.judged = False
        self._rows = rows
        self._terminal = config.pluginmanager.getplugin("terminalreporter")
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._said = time.monotonic()

    def count(self, ci: int, torture: int) -> int:
        """The trials, or the seconds, of this run's size."""
        return torture if self.torture else ci

    def progress(self, done: int, of: int, what: str = "trials") -> None:
        """Say how far it is, now and then."""
        if time.monotonic() - self._said < _SAY_EVERY_S or self._terminal is None:
            return
        self._said = time.monotonic()
        with self._capture.global_and_fixture_disabled():
            self._terminal.write_line(f"\n{self.name}: {done} of {of} {what}")

    def judge(self, *cases: Case) -> None:
        """Put the cases into the table; fail the test when one did not hold or its twin stayed green."""
        self.judged = True
        self._rows.extend(case.cells(self.seed) for case in cases)
        faults = [line for case in cases for line in case.faults()]
        assert not faults, "\n".join(faults)

    def measure(self, once: Callable[[], Sequence[Case]]) -> None:
        """Judge what `measured` finds."""
        self.judge(*measured(once))

    def give_up(self, why: list[str]) -> None:
        """Say in the table that the test ended before it could judge."""
        self.judged = True
        self._rows.append(unfinished(self.name, self.seed, why[0] if why else "it did not finish"))


def measured(once: Callable[[], Sequence[Case]]) -> list[Case]:
    """What `once` finds. What is over a bound of time may be the machine's doing: it is measured again,
    `TRIES` times in all, and counts when it is over each time; the cases say how often.

    A failed trial counts at once.
    """
    for tries in range(1, TRIES + 1):
        cases = [replace(case, tries=tries) for case in once()]
        missed = [case for case in cases if not case.found.held]
        if not missed or any(case.found.failures for case in missed):
            break
    return cases
