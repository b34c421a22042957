"""What was recorded while a link was like one profile, and the figures of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.conditions import Profile
from benchmarks.lanes import Record, Route

ORACLE, CASCADE, EDGE_ONLY = "oracle", "cascade", "edge only"
STILL_S = 0.05
ALIKE = 1.2
_FEWEST = 4  # requests in a stretch, for it to say anything
_FALLBACK = "edge_fallback"


@dataclass(frozen=True)
class Phase:
    """One workload over one profile: whether the full model is right about each sample, by route its
    records, its bytes up on the wire, probes and all, and the processor seconds of its edge node."""

    workload: str
    full_right: Sequence[bool]
    profile: Profile
    routes: tuple[Route, ...]
    records: dict[str, list[Record]]
    wire_up: dict[str, int]
    cpu_s: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One route's figures over one profile. `gap` is in shares of 1, below `reference`, and `doubt` its
    standard error; times are seconds, bytes and processor seconds those of one request."""

    route: str
    requests: int
    accuracy: float
    gap: float
    doubt: float
    mean: float
    p50: float
    p95: float
    p99: float
    bytes_up: float
    cpu_s: float
    shares: dict[str, float]


def rows(phase: Phase) -> list[Row]:
    """The figures of every route, then the oracle's."""
    best = reference(phase)
    made = []
    for name, records in phase.records.items():
        bytes_up, cpu_s = phase.wire_up[name] / len(records), phase.cpu_s[name] / len(records)
        made.append(_row(name, records, best, bytes_up, cpu_s))
    chosen = oracle(phase)
    bytes_up = float(np.mean([record.bytes_up for record in chosen]))
    return [*made, _row(ORACLE, chosen, best, bytes_up, float("nan"))]


def stillness(phase: Phase) -> float:
    """Seconds that one request in fifty takes at least by the edge alone, which no link can make slow."""
    canary = phase.records.get(EDGE_ONLY, ())
    return float(np.percentile([record.seconds for record in canary], 98)) if canary else 0.0


def stood_still(phase: Phase) -> bool:
    """Whether something else had the machine for so long that the figures say little."""
    return stillness(phase) > STILL_S


def oracle(phase: Phase) -> list[Record]:
    """For every sample the quickest right record of the fixed routes; the quickest where none is right."""
    fixed = [phase.records[route.name] for route in phase.routes if route.fixed]
    return [
        min(alternatives, key=lambda record: (not record.right, record.seconds))
        for alternatives in zip(*fixed, strict=True)
    ]


def reference(phase: Phase) -> list[bool]:
    """What accuracy is held against, request by request: the full model's; where the link changes and
    nobody has that all the time, the cascade's."""
    if phase.profile.steady or CASCADE not in phase.records:
        some = next(iter(phase.records.values()))
        return [phase.full_right[record.sample] for record in some]
    return [record.right for record in phase.records[CASCADE]]


def gap_kept(row: Row, most: float) -> bool:
    """Whether a route loses no more accuracy than `most`, by what can be told from so many requests: one
    standard error is granted."""
    return row.gap - row.doubt <= most + 1e-9


def settling(records: Sequence[Record], starts: Sequence[float]) -> list[tuple[int, float]]:
    """For each change of the link at one of `starts`, after how many requests and how many seconds the route
    was a right one: from then on at most one in five that the edge was unsure of takes a wrong one.

    A way up is right where its median latency, in that stretch, is within `ALIKE` of the best one's. Where
    most of the second half of a stretch is the edge's fallback, that is right and nothing else.
    """
    found = []
    for start, end in zip(starts, [*starts[1:], float("inf")], strict=True):
        stretch = [record for record in records if start <= record.at < end]
        unsure = [(number, record) for number, record in enumerate(stretch) if record.source != "edge"]
        if len(unsure) < _FEWEST:
            continue
        best = right_ways([record for _, record in unsure])
        flags = [_kind(record) in best for _, record in unsure]
        first = next((at for at, flag in enumerate(flags) if flag and np.mean(flags[at:]) >= 0.8), None)
        if first is None:
            found.append((len(stretch), stretch[-1].at - start))
        else:
            number, record = unsure[first]
            found.append((number, record.at - start) if first else (0, 0.0))
    return found


def right_ways(unsure: Sequence[Record]) -> set[str]:
    """The right routes of a stretch, by `settling`'s rule, from the requests that the edge was unsure of."""
    late = Counter(_kind(record) for record in unsure[len(unsure) // 2 :])
    if late.most_common(1)[0][0] == _FALLBACK:
        return {_FALLBACK}
    times: dict[str, list[float]] = {}
    for record in unsure:
        if record.source == "cloud":
            times.setdefault(record.way, []).append(record.seconds)
    medians = {way: float(np.median(seconds)) for way, seconds in times.items()}
    return {way for way, median in medians.items() if median <= ALIKE * min(medians.values())}


def _kind(record: Record) -> str:
    return record.way if record.source == "cloud" else record.source


def _accuracy(records: Sequence[Record]) -> float:
    return float(np.mean([record.right for record in records]))


def _row(name: str, records: Sequence[Record], best: Sequence[bool], bytes_up: float, cpu_s: float) -> Row:
    seconds = np.array([record.seconds for record in records])
    p50, p95, p99 = (float(value) for value in np.percentile(seconds, (50, 95, 99)))
    counts = Counter(_kind(record) for record in records)
    accuracy = _accuracy(records)
    lost = np.array(best, float) - np.array([record.right for record in records], float)
    return Row(
        name, len(records), accuracy, float(lost.mean()), float(lost.std() / len(lost) ** 0.5),
        float(seconds.mean()), p50, p95, p99, bytes_up, cpu_s,
        {kind: count / len(records) for kind, count in counts.most_common()},
    )  # fmt: skip
