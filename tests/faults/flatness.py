"""Whether what a process takes has stayed the same over a long time. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

WARM_UP = 0.3  # of the time, in which caches and pools may fill
GROWTH = 0.05  # of the memory, from then on
SLACK_BYTES = 4 << 20  # what an allocator may take at once
SLACK = 3  # of what is counted


@dataclass(frozen=True)
class Vital:
    """What a process takes at one moment: resident bytes, open descriptors, threads, tasks of its event loop,
    and the series of its metrics."""

    resident: int
    descriptors: int
    threads: int
    tasks: int
    series: int


def growths(vitals: Sequence[Vital]) -> dict[str, tuple[float, float]]:
    """From what each has grown to what, between the first and the last third after the warm-up: the median of
    the memory, and the least of what is counted, as connections come and go, and a leak raises the floor."""
    warm = vitals[int(len(vitals) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    found = {}
    for field in fields(Vital):
        level = median if field.name == "resident" else min
        first, last = (
            level(getattr(vital, field.name) for vital in part) for part in (warm[:third], warm[-third:])
        )
        found[field.name] = (first, last)
    return found


def leaks(name: str, vitals: Sequence[Vital]) -> list[str]:
    """What has grown, one sentence each."""
    if len(vitals) < 6:
        return [f"{name} was looked at {len(vitals)} times only"]
    found = []
    for what, (before, after) in growths(vitals).items():
        slack = max(before * GROWTH, SLACK_BYTES) if what == "resident" else SLACK
        if after > before + slack:
            found.append(f"{name}: {what} from {before:.0f} to {after:.0f}")
    return found
