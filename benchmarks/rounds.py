"""Interleaved rounds: every system has its turn in each, beside the raw loop, and medians are taken."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import orjson

from benchmarks.load import Broken, Dial, Run, closed_loop, open_loop, poisson
from benchmarks.models import Served
from benchmarks.systems import RawLoop, Server
from benchmarks.ways import Way

OPEN = 0  # the number of clients that stands for an open loop
_RAW_S = 0.3
_CONNECTIONS = 64  # of an open loop


@dataclass(frozen=True)
class Cell:
    """What one figure is of: a model, a system, a way to ask it and how many clients ask at a time.

    `OPEN` clients come independently of each other and of the answers.
    """

    model: str
    system: str
    way: str
    clients: int


@dataclass(frozen=True)
class Figures:
    """One measurement, and the raw loop's right before it: requests per second and microseconds.

    `stages` are the medians of `timings_ms`, where the answers hold them.
    """

    per_s: float
    p50_us: float
    p99_us: float
    raw_per_s: float
    raw_p50_us: float
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Throughput as a share of the raw loop's."""
        return self.per_s / self.raw_per_s

    @property
    def over_us(self) -> float:
        """What the median takes longer than a raw run."""
        return self.p50_us - self.raw_p50_us

    def queue(self, clients: int) -> float:
        """The p99 as a multiple of `ideal_us`."""
        return self.p99_us / ideal_us(clients, self.raw_per_s)


def ideal_us(clients: int, per_s: float) -> float:
    """How long each of `clients` waits in an ideal queue, in microseconds.

    A server that does nothing but run the model, one request after the other in the order they came, each
    in `1 / per_s` seconds, and clients who ask again as soon as they are answered: every request finds
    `clients - 1` before it, so all of them take `clients / per_s`, the slowest too.
    """
    return clients / per_s * 1e6


@dataclass(frozen=True)
class Part:
    """A way of one system, by how many clients at a time it is asked, and for how many seconds each.

    `load` is the rate at which `OPEN` clients come, as a share of the raw loop's.
    """

    way: Way
    clients: Sequence[int]
    seconds: float
    load: float = 0.7


@dataclass(frozen=True)
class Entry:
    """One system with one model loaded, and what is asked of it."""

    server: Server
    model: Served
    parts: Sequence[Part]


class Results:
    """All measurements by cell, and what went wrong: the first reason by cell."""

    def __init__(self) -> None:
        self.runs: dict[Cell, list[Figures]] = {}
        self.failures: dict[Cell, str] = {}

    def add(self, cell: Cell, figures: Figures) -> None:
        """Keep a measurement."""
        self.runs.setdefault(cell, []).append(figures)

    def median(self, cell: Cell, of: Callable[[Figures], float]) -> float:
        """The median over the rounds of what `of` takes from a measurement; NaN where there is none."""
        values = [of(figures) for figures in self.runs.get(cell, [])]
        return median(values) if values else math.nan

    def per_s(self, cell: Cell) -> float:
        """Requests per second."""
        return self.median(cell, lambda figures: figures.per_s)

    def stages(self, cell: Cell) -> dict[str, float]:
        """Milliseconds by stage, as the answers tell them."""
        names = {name for figures in self.runs.get(cell, []) for name in figures.stages}
        return {name: self.median(cell, partial(_stage, name)) for name in names}


def _stage(name: str, figures: Figures) -> float:
    return figures.stages.get(name, math.nan)


def play(
    entries: Sequence[Entry],
    raws: Mapping[str, RawLoop],
    rounds: int,
    results: Results,
    tell: Callable[[str], None],
) -> None:
    """Measure every entry in each of the rounds, each time in another order.

    `raws` are the raw loops by the model's name. What fails is left out from then on, and said why.
    """
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}: " + ", ".join(_names(entries)))
        turn = number * len(entries) // max(rounds, 1)
        for entry in [*entries[turn:], *entries[:turn]]:
            for part in entry.parts:
                for clients in part.clients:
                    _measure(entry, part, clients, raws[entry.model.name], results)


def _names(entries: Iterable[Entry]) -> list[str]:
    return [f"{entry.server.name} {entry.model.name}" for entry in entries]


def _measure(entry: Entry, part: Part, clients: int, raw: RawLoop, results: Results) -> None:
    server, way = entry.server, part.way
    cell = Cell(entry.model.name, server.name, way.name, clients)
    if cell in results.failures:
        return
    beside = raw.measure(_RAW_S)
    try:
        with server.turn():
            run = _run(part, way.at(server.port(way)), clients, beside["per_s"])
    except Broken as error:
        results.failures[cell] = str(error)
        return
    if run.errors or not run.latencies_ns:
        said = "; ".join(f"{kind}: {why}" for kind, why in run.examples.items()) or "no answer"
        results.failures[cell] = f"{run.errors} errors beside {len(run.latencies_ns)} answers ({said})"
        return
    results.add(cell, figures(run, beside))


def _run(part: Part, dial: Dial, clients: int, raw_per_s: float) -> Run:
    if clients != OPEN:
        return closed_loop(dial, part.way.check, clients=clients, seconds=part.seconds)
    due_s = poisson(part.load * raw_per_s, part.seconds, seed=0)
    return open_loop(dial, part.way.check, due_s=due_s, clients=_CONNECTIONS)


def figures(run: Run, beside: Mapping[str, float]) -> Figures:
    """What a run came to; `beside` is what the raw loop says."""
    return Figures(
        run.per_s,
        run.percentile_us(50),
        run.percentile_us(99),
        beside["per_s"],
        beside["p50_us"],
        _stages(run),
    )


def _stages(run: Run) -> dict[str, float]:
    """The medians of the answers' `timings_ms`, where they are Outcomes."""
    if not run.kept or b'"timings_ms"' not in run.kept[0].body:
        return {}
    told = [orjson.loads(reply.body)["timings_ms"] for reply in run.kept]
    names = {name for timings in told for name in timings}
    return {name: median(timings[name] for timings in told if name in timings) for name in names}
