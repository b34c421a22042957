"""The knee over threads and batch: what may be tried, how the services would run it, and which to take."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from inference_core.errors import InvalidInput

EDGE, CLOUD = "edge", "cloud"
INLINE_MS = 0.5  # the edge's own default of `inline_ms` on several cores; a test holds them equal
MAX_BATCH = 256  # the edge's own limit of `max_batch`
MAX_THREADS = 256  # both services' own limit of `threads`, and the edge's of `workers`
SHARE = 0.9  # of the best throughput, which the choice must reach
MIN_SECONDS, MAX_SECONDS = 0.01, 60.0
_ALIKE = 1.05  # runs that differ by less than this factor take the same time, as far as can be told


@dataclass(frozen=True)
class Serving:
    """How a service runs its models. Runs of up to `inline_s` seconds happen one at a time, on its loop."""

    service: str
    providers: tuple[str, ...]
    inline_s: float

    def at_a_time(self, threads: int, cores: int, run_s: float) -> int:
        """How many runs of `threads` threads, of `run_s` seconds for one sample, keep `cores` cores busy."""
        return 1 if run_s <= self.inline_s else max(1, cores // threads)


# The cloud has one thread for all runs, however long they are, and looks for a GPU first.
SERVINGS = {
    EDGE: Serving(EDGE, ("CPUExecutionProvider",), INLINE_MS / 1000),
    CLOUD: Serving(CLOUD, ("CUDAExecutionProvider", "CPUExecutionProvider"), math.inf),
}


@dataclass(frozen=True)
class Grid:
    """What is tried: threads up to `cores`, batches up to `max_batch`, about `seconds` for each cell.

    `cores` is at most `MAX_THREADS`, `max_batch` at most `MAX_BATCH`.
    """

    cores: int
    max_batch: int
    seconds: float


@dataclass(frozen=True)
class Cell:
    """One setting, and the median milliseconds of a run while `at_a_time` of them are under way."""

    threads: int
    at_a_time: int
    batch: int
    run_ms: float

    @property
    def rate(self) -> float:
        """Samples a second of all runs together, where none is held up by what else the machine does."""
        return self.at_a_time * self.batch / self.run_ms * 1000


def check_grid(max_batch: int, seconds: float) -> None:
    """Raise `InvalidInput`, which names the option, the value and the limit, for what cannot be measured."""
    if not 1 <= max_batch <= MAX_BATCH:
        raise InvalidInput(f"--max-batch: must be 1 to {MAX_BATCH}, got {max_batch}")
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:  # nor a NaN
        raise InvalidInput(f"--seconds: must be {MIN_SECONDS:g} to {MAX_SECONDS:g}, got {seconds:g}")


def steps(limit: int) -> tuple[int, ...]:
    """The powers of two up to `limit`, and `limit` itself, rising. For 12: 1, 2, 4, 8, 12."""
    return tuple(sorted({limit, *(2**power for power in range(limit.bit_length()))}))


def knee(cells: Iterable[Cell]) -> Cell:
    """Of the cells that reach `SHARE` of the best throughput the one with the shortest run.

    Runs that are less than 5 % longer than the shortest count as equally short, since no measurement tells
    them apart; among those the fewest threads are taken, then the smallest batch. Raises `ValueError` where
    there are no cells.
    """
    every = tuple(cells)
    enough = SHARE * max(cell.rate for cell in every)
    fast = [cell for cell in every if cell.rate >= enough]
    shortest = min(cell.run_ms for cell in fast)
    alike = [cell for cell in fast if cell.run_ms < _ALIKE * shortest]
    return min(alike, key=lambda cell: (cell.threads, cell.batch, cell.run_ms))


def chosen_settings(choice: Cell, service: str, cores: int) -> dict[str, int]:
    """The settings of `service` by name that make it run as `choice` did on `cores` cores.

    The edge's workers decode images, too, and run what is not short: they are as many as fit even where
    the choice was measured one at a time.
    """
    if service == CLOUD:
        return {"threads": choice.threads, "max_batch_size": choice.batch}
    workers = max(1, cores // choice.threads)
    return {"threads": choice.threads, "workers": workers, "max_batch": choice.batch}
