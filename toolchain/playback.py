"""`tandem device`: a folder of images played against a running edge, told second by second and summed up."""

import asyncio
import itertools
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from inference_core.errors import InvalidInput
from toolchain.device import OPEN, Access, Device, Query, play_at_rate, wait
from toolchain.images import LabelledImage
from toolchain.tally import Reply, Tally, breakdown, figures

MAX_OPEN = 64  # requests; further ones wait, which shows in their latency
_EVERY_S = 1.0


@dataclass(frozen=True)
class Playback:
    """What is played: `count` images, round and round where there are fewer, or without end for None.

    `rate` is images per second, `model` the edge's only one for None, `query` the parameters of each
    prediction, `access` what the node asks for. Raises `InvalidInput` for a count or rate not above 0.
    """

    url: str
    model: str | None
    rate: float
    count: int | None
    query: Query = field(default_factory=dict)
    access: Access = OPEN

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InvalidInput(f"rate: must be above 0 images per second, got {self.rate}")
        if self.count is not None and self.count < 1:
            raise InvalidInput(f"count: must be at least 1, got {self.count}")


async def play_back(playback: Playback, images: Sequence[LabelledImage], console: Console) -> Tally:
    """Play `images`, print a line a second, and return what came back in all.

    Ctrl-C and SIGTERM end the playing; requests that are open then are still waited for. Raises
    `EdgeFailed` without an edge node at the URL, and `InvalidInput` when it does not serve the model.
    """
    stop, finished = asyncio.Event(), asyncio.Event()
    total, second = Tally(), Tally()
    endless: Iterable[LabelledImage] = itertools.cycle(images)

    def note(reply: Reply) -> None:
        total.add(reply)
        second.add(reply)

    async def report() -> None:
        nonlocal second
        started = time.monotonic()
        for tick in itertools.count(1):
            await wait(finished, started + tick * _EVERY_S - time.monotonic())
            console.print(_line(time.monotonic() - started, second), highlight=False, soft_wrap=True)
            second = Tally()
            if finished.is_set():
                return

    opened = Device(playback.url, playback.model, connections=MAX_OPEN, access=playback.access)
    async with opened as device:
        _stop_on_signals(stop)
        reporter = asyncio.create_task(report())
        try:
            chosen = itertools.islice(endless, playback.count)
            await play_at_rate(
                device, chosen, playback.query, playback.rate, note, stop=stop, max_open=MAX_OPEN
            )
        finally:
            finished.set()
            await reporter
    return total


def summary(tally: Tally) -> list[str]:
    """What came back, in words; latencies count from when a request was due."""
    accuracy, at_edge, p50, p95, p99, bytes_up, image_bytes = figures(tally)
    lines = [
        f"{tally.sent} sent, {tally.answered} answered, {tally.refused} refused, "
        f"{tally.unanswered} not answered",
        f"  answers    {breakdown(tally.answers) or '-'}",
        f"  latency    p50 {p50} ms, p95 {p95} ms, p99 {p99} ms",
        f"  accuracy   {accuracy}",
        f"  at edge    {at_edge}",
        f"  bytes up   {bytes_up} on average, for images of {image_bytes}",
    ]
    return lines + [f"  {count} x {error}" for error, count in tally.errors.most_common()]


def _line(elapsed_s: float, second: Tally) -> str:
    sources = second.by_source()
    _, _, p50, _, p99, *_ = figures(second)
    return (
        f"{elapsed_s:5.0f} s  {second.answered:4d} answered: edge {sources['edge']}, "
        f"cloud {sources['cloud']}, fallback {sources['edge_fallback']}; "
        f"failed {second.sent - second.answered}; "
        f"p50 {p50} ms, p99 {p99} ms"
    )


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at the first Ctrl-C or SIGTERM; a second one ends everything at once."""
    loop = asyncio.get_running_loop()

    def once() -> None:
        stop.set()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, once)
