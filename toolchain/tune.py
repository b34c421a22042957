"""What runs of a model cost on this machine, over threads and batch.

The runs are those of the services: the same engine, as many at a time as the service would have under load,
each on a thread of this process.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inference_core.bundle import Bundle
from inference_core.engine import Engine
from inference_core.errors import ModelError
from inference_core.manifest import File
from inference_core.tensors import Tensors
from toolchain.knee import Cell, Grid, Serving, knee, steps
from toolchain.progress import track

ROUNDS = 5
_PATIENCE = 1.5  # times the seconds of all cells: no further round is begun after that
_SINGLE_RUNS = 5
_QUIET = 1.5  # times that rounds may differ by on a machine that does nothing else


@dataclass(frozen=True)
class LeftOut:
    """A setting that was not measured, and why."""

    threads: int
    batch: int
    why: str


@dataclass(frozen=True)
class Measured:
    """All settings of one file, in the order of threads and batch, of about `seconds` seconds each.

    `fixed` says that its batch axis is 1; `unrest` is how many times longer a setting took in one round than
    in another, at most.
    """

    service: str
    file: str
    providers: tuple[str, ...]
    seconds: float
    rounds: int
    unrest: float
    fixed: bool
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def choice(self) -> Cell:
        """The knee."""
        return knee(self.cells)


def measure(bundle: Bundle, file: File, serving: Serving, grid: Grid) -> Measured:
    """Run `file` in every setting of `grid`, in rounds that take turns.

    A batch is left out where `ROUNDS` runs of it would take longer than its seconds, or where it fails. A
    single sample is always measured; no further round is begun when the time of all cells is over. Raises
    `BundleError` for a file that no service would load, and `ModelError` where single samples fail.
    """
    sample = bundle.sample(file)
    engines = {
        threads: bundle.engine(file, threads=threads, providers=serving.providers)
        for threads in steps(grid.cores)
    }
    first = engines[1]
    fixed = not all(spec.shape[:1] == (-1,) for spec in first.inputs)
    batches = (1,) if fixed else steps(grid.max_batch)
    inputs = {batch: _repeated(sample, batch) for batch in batches}
    places: list[_Place] = []
    left_out: list[LeftOut] = []
    for threads, engine in engines.items():
        singles = _singles(engine, inputs[1], grid.seconds)
        lanes = serving.at_a_time(threads, grid.cores, statistics.median(singles))
        for batch in batches:
            place = _Place(engine, threads, lanes, batch, inputs[batch])
            why = _reason(place, min(singles), grid.seconds)
            if why:
                left_out.append(LeftOut(threads, batch, why))
            else:
                places.append(place)
    cells, rounds, unrest = _measure(places, grid, f"tuning the {serving.service}")
    return Measured(
        service=serving.service,
        file=file.file,
        providers=first.providers,
        seconds=grid.seconds,
        rounds=rounds,
        unrest=unrest,
        fixed=fixed,
        cells=cells,
        left_out=tuple(left_out),
    )


def render(measured: Measured) -> RenderableType:
    """`measured` as a table for a terminal, the choice marked, and what is to be known of it."""
    table = Table(title=f"{measured.service}: {measured.file}", title_justify="left")
    for column in ("threads", "at a time", "batch", "ms per run", "samples/s"):
        table.add_column(column, justify="right")
    table.add_column("")
    rows: dict[tuple[int, int], tuple[str, ...]] = {
        (one.threads, one.batch): (str(one.threads), "", str(one.batch), "", "", f"left out: {one.why}")
        for one in measured.left_out
    }
    for cell in measured.cells:
        mark = "chosen" if cell == measured.choice else ""
        figures = (str(cell.at_a_time), str(cell.batch), f"{cell.run_ms:.3f}", _rounded(cell.rate))
        rows[cell.threads, cell.batch] = (str(cell.threads), *figures, mark)
    for _, row in sorted(rows.items()):
        table.add_row(*row, style="bold" if row[-1] == "chosen" else "")
    notes = [f"medians of {measured.rounds} round{'' if measured.rounds == 1 else 's'}"]
    if measured.left_out:
        notes.append(
            f"left out is what fails, or does not fit {ROUNDS} times into --seconds {measured.seconds:g}"
        )
    if measured.fixed:
        notes.append("the file's batch axis is fixed, so that only single samples were measured")
    if measured.providers[0] != "CPUExecutionProvider":
        notes.append(f"on {measured.providers[0]}")
    if measured.unrest > _QUIET:
        notes.append(
            f"the machine was busy, one round took {measured.unrest:.1f} times as long as another: better "
            "tune again while nothing else runs"
        )
    return Group(table, Text("; ".join(notes)))


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


@dataclass(frozen=True)
class _Place:
    """A cell before it is measured: `lanes` runs at a time of `inputs`, a batch of samples."""

    engine: Engine
    threads: int
    lanes: int
    batch: int
    inputs: Tensors


def _repeated(sample: Tensors, batch: int) -> Tensors:
    return {name: np.repeat(rows, batch, axis=0) for name, rows in sample.items()}


def _singles(engine: Engine, inputs: Tensors, seconds: float) -> list[float]:
    """The seconds of some runs of one sample, after one that is not counted."""
    engine.run(inputs)
    return _burst(engine, inputs, seconds / 2, most=_SINGLE_RUNS)


def _reason(place: _Place, single_s: float, seconds: float) -> str:
    """Why a cell is not measured; empty for one that is, which then has run once."""
    if place.batch == 1:
        return ""
    expected = single_s * place.batch
    if ROUNDS * expected > seconds:
        return f"a run takes about {expected:.2g} s"
    try:
        place.engine.compute(place.inputs)
    except ModelError as error:
        return " ".join(str(error).split())
    return ""


def _measure(places: Sequence[_Place], grid: Grid, what: str) -> tuple[tuple[Cell, ...], int, float]:
    """The cells, how many rounds were counted, and how far those of one cell were apart."""
    runs: list[list[float]] = [[] for _ in places]
    order = [(turn, at) for turn in range(1 + ROUNDS) for at in range(len(places))]
    deadline = time.monotonic() + _PATIENCE * grid.seconds * len(places)
    with _Lanes(grid.cores) as lanes:
        for turn, at in track(order, what):
            if turn > 1 and at == 0 and time.monotonic() > deadline:
                break
            # The first turn warms up all lanes and is not counted.
            run_s = lanes.run(places[at], grid.seconds / ROUNDS if turn else 0.0)
            if turn:
                runs[at].append(run_s)
    cells = (
        Cell(place.threads, place.lanes, place.batch, statistics.median(times) * 1000)
        for place, times in zip(places, runs, strict=True)
    )
    return tuple(cells), len(runs[0]), max(max(times) / min(times) for times in runs)


class _Lanes:
    """Threads that run models side by side; leaving the block stops them, in the middle of a burst, too."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, "run")
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown()

    def run(self, place: _Place, seconds: float) -> float:
        """The median seconds of a run, over all lanes of `place`, in a burst of `seconds`."""
        jobs = [
            self._pool.submit(_burst, place.engine, place.inputs, seconds, stopping=self._stopping.is_set)
            for _ in range(place.lanes)
        ]
        return statistics.median(time_s for job in jobs for time_s in job.result())


def _burst(
    engine: Engine,
    inputs: Tensors,
    seconds: float,
    most: float = math.inf,
    stopping: Callable[[], bool] = lambda: False,
) -> list[float]:
    """The seconds of each run, one after the other: at least one, and none begun after `seconds`."""
    times: list[float] = []
    started = ended = time.perf_counter()
    while not times or (ended - started < seconds and len(times) < most and not stopping()):
        begun = time.perf_counter()
        engine.compute(inputs)
        ended = time.perf_counter()
        times.append(ended - begun)
    return times
