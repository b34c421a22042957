"""What the fault suite found: one row for each fault, beside its twin without the protection."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEAD = ("fault", "trials", "failed", "rate below", "seed", "figure", "held", "twin")
_RULE_OF_THREE = 3.0


@dataclass(frozen=True)
class Finding:
    """What became of the trials of one fault, with the protection or without it.

    `failures` of `trials` went wrong; `figure` says what was measured, with units; `broken` says what else
    did not hold, one sentence each, a figure over its bound for example.
    """

    trials: int
    failures: int
    figure: str
    broken: tuple[str, ...] = ()

    @property
    def held(self) -> bool:
        """Whether there were trials, none of them failed, and every figure is within its bound."""
        return self.trials > 0 and self.failures == 0 and not self.broken

    @property
    def bound(self) -> str:
        """What the trials say about the rate of failures, at 95 % confidence: none in n bounds it at 3/n."""
        if self.failures or not self.trials:
            return "-"
        return f"{_RULE_OF_THREE / self.trials:.2g}"


@dataclass(frozen=True)
class Case:
    """One row: the fault, what was found, and what was found when the protection `removed` was away.

    `tries`: how often it was measured, the last time being the one that is told.
    """

    fault: str
    found: Finding
    twin: Finding
    removed: str
    tries: int = 1

    def faults(self) -> list[str]:
        """Why this row fails the run, one line each; empty when it held and its twin went red."""
        lines = []
        if not self.found.held:
            said = "; ".join(self.found.broken) or self.found.figure
            lines.append(f"{self.fault}: {self.found.failures} of {self.found.trials} failed: {said}")
        if self.twin.trials == 0:
            lines.append(f"{self.fault}: its twin without {self.removed} was not run")
        elif self.twin.held:
            lines.append(f"{self.fault}: its twin without {self.removed} stayed green: {self.twin.figure}")
        return lines

    @property
    def _verdict(self) -> str:
        if self.found.held:
            return "yes" if self.tries == 1 else f"yes, at try {self.tries}"
        return "NO" + (f": {'; '.join(self.found.broken)}" if self.found.broken else "")

    def cells(self, seed: int) -> tuple[str, ...]:
        """What the table says, in the order of `HEAD`."""
        found, twin = self.found, self.twin
        colour = ("GREEN" if twin.held else "red") if twin.trials else "not run"
        failed = f"{twin.failures} of {twin.trials} failed" if twin.failures else "; ".join(twin.broken)
        said = ", ".join(part for part in (failed, twin.figure) if part)
        return (
            self.fault,
            str(found.trials),
            str(found.failures),
            found.bound,
            str(seed),
            found.figure,
            self._verdict,
            f"{colour} without {self.removed}: {said}",
        )


def unfinished(fault: str, seed: int, why: str) -> tuple[str, ...]:
    """The row of a fault whose test ended before it could judge."""
    return (fault, "-", "-", "-", str(seed), why, "NO", "-")


def markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """The rows as a table of Markdown, its columns in line."""
    lines = [HEAD, *(tuple(_plain(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    ruled = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
    return "".join(f"| {' | '.join(_padded(line, widths))} |\n" for line in ruled)


def write(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Write the table to `path`. Rows that an earlier run left there stay unless they were run again, so
    that a long run can be made in parts."""
    kept = {row[0]: row for row in _read(path)} if path.exists() else {}
    for row in rows:
        plain = tuple(_plain(cell) for cell in row)
        kept[plain[0]] = plain
    path.write_text(markdown(kept.values()))


def _read(path: Path) -> list[tuple[str, ...]]:
    rows = []
    for line in path.read_text().splitlines()[2:]:
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split(" | "))
        if len(cells) == len(HEAD):
            rows.append(cells)
    return rows


def _plain(cell: str) -> str:
    return re.sub(r"\s+", " ", cell.replace("|", "/")).strip() or "-"


def _padded(line: tuple[str, ...], widths: list[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
