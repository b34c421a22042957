"""The demo: both services as processes, images as a device sends them, each mode measured, then an outage."""

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from inference_core.bundle import Bundle
from inference_core.errors import InvalidInput
from toolchain.device import Device, Query, play_all
from toolchain.images import LabelledImage
from toolchain.outage import GRACE_MS, MAX_RATE, Outage, Timing, forced_threshold, play_outage
from toolchain.processes import Service, ServiceFailed
from toolchain.tally import Reply, Tally, breakdown, figures
from toolchain.ticker import Ticker

FIRST_CLOUD_S = 10.0  # within which the edge must have reached the cloud
_SHUTDOWN_MS = "1000"
_SEED = 0


@dataclass(frozen=True)
class Plan:
    """How the demo is played: images sent at a time while modes are measured, and how the outage goes."""

    connections: int = 2
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class Measured:
    """One mode on all images: what it is called, what was asked for, and what came back."""

    name: str
    query: Query
    replies: Sequence[Reply]
    seconds: float

    @property
    def tally(self) -> Tally:
        """The counts and latencies."""
        return Tally.of(self.replies)


@dataclass(frozen=True)
class Results:
    """All that the demo found out; each request had `deadline_ms`."""

    modes: Sequence[Measured]
    outage: Outage
    deadline_ms: float

    @property
    def complete(self) -> bool:
        """Whether every request was answered with 200, and escalations went on after the outage."""
        return self.answered == self.sent and self.outage.resumed_s is not None

    @property
    def sent(self) -> int:
        """Requests sent in all."""
        return self.outage.total.sent + sum(mode.tally.sent for mode in self.modes)

    @property
    def answered(self) -> int:
        """Requests answered with 200."""
        return self.outage.total.answered + sum(mode.tally.answered for mode in self.modes)


def queries(bundle: Bundle) -> dict[str, Query]:
    """The modes that are measured, by their name in the table: what to ask the edge for."""
    modes: dict[str, Query] = {
        "edge only": {"mode": "edge"},
        "cloud only": {"mode": "cloud"},
        "cascade": {"mode": "cascade"},
    }
    return modes | {f"split {cut.name}": {"mode": "split", "cut": cut.name} for cut in bundle.manifest.cuts}


async def run_demo(bundle: Bundle, images: Sequence[LabelledImage], plan: Plan, ticker: Ticker) -> Results:
    """Start the services with `bundle`, play `images` and stop the services, also when interrupted.

    Raises `InvalidInput` for a bundle that takes no images or without images, and `ServiceFailed`.
    """
    if bundle.manifest.preprocess is None:
        raise InvalidInput(f"{bundle.manifest.model}: takes tensors, so it cannot be shown images")
    if not images:
        raise InvalidInput("there are no images to play")
    _stop_on_sigterm()
    # A folder is read class by class; a device sees them mixed.
    images = random.Random(_SEED).sample(images, len(images))  # noqa: S311 - an order, no secret
    settings = {"BUNDLES": str(bundle.folder), "SHUTDOWN_MS": _SHUTDOWN_MS}
    async with Service("cloud_service", "CLOUD", settings) as cloud:
        ticker.say(f"cloud: process {cloud.pid} at {cloud.grpc_target}")
        edge_settings = {**settings, "CLOUD": cloud.grpc_target}
        async with Service("edge_node", "EDGE", edge_settings) as edge:
            ticker.say(f"edge: process {edge.pid} at {edge.url}")
            connections = max(plan.connections, int(MAX_RATE))
            async with Device(edge.url, bundle.manifest.model, connections=connections) as device:
                return await _play(device, cloud, bundle, images, plan, ticker)


async def _play(
    device: Device,
    cloud: Service,
    bundle: Bundle,
    images: Sequence[LabelledImage],
    plan: Plan,
    ticker: Ticker,
) -> Results:
    await _wait_for_cloud(device, images[0])
    modes = [
        await _measure(device, name, query, images, plan.connections, ticker)
        for name, query in queries(bundle).items()
    ]
    cascade = next(mode for mode in modes if mode.name == "cascade")
    query = dict(cascade.query)
    threshold = forced_threshold(cascade.replies)
    if threshold is not None:
        query["threshold"] = repr(threshold)
        ticker.say(f"outage: few images are escalated, so it is played with a threshold of {threshold:.4f}")
    # half of what a cascade can take leaves room for the cloud's start on the same machine
    rate = min(MAX_RATE, max(1.0, len(images) / cascade.seconds / 2))
    ticker.say(f"outage: {rate:.0f} images per second in mode cascade")
    outage = await play_outage(device, cloud, images, query, rate, plan.timing, ticker)
    return Results(modes, outage, device.served.deadline_ms)


async def _wait_for_cloud(device: Device, image: LabelledImage) -> None:
    """Return once the edge has got an answer from the cloud."""
    deadline = time.monotonic() + FIRST_CLOUD_S
    while True:
        reply = await device.send(image, {"mode": "cloud"})
        if reply.source == "cloud":
            return
        if time.monotonic() > deadline:
            why = reply.error or f"its answers say {reply.source}, {reply.reason}"
            raise ServiceFailed(f"the edge did not get through to the cloud in {FIRST_CLOUD_S:.0f} s: {why}")
        await asyncio.sleep(0.05)


async def _measure(
    device: Device, name: str, query: Query, images: Sequence[LabelledImage], connections: int, ticker: Ticker
) -> Measured:
    replies: list[Reply] = []

    def note(reply: Reply) -> None:
        replies.append(reply)
        ticker.show(f"{name}: {len(replies)} of {len(images)} images")

    started = time.monotonic()
    await play_all(device, images, query, connections, note)
    seconds = time.monotonic() - started
    ticker.say(f"{name}: {len(images)} images in {seconds:.1f} s")
    return Measured(name, query, replies, seconds)


def _stop_on_sigterm() -> None:
    """Let SIGTERM end the current task as Ctrl-C does, so that it stops what it has started."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def render(results: Results, bundle: Bundle, plan: Plan, console: Console) -> None:
    """Print the table of the modes, and what happened during the outage."""
    manifest, images = bundle.manifest, results.modes[0].tally.sent
    title = f"{manifest.model} {manifest.version}: {images} images"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("mode", no_wrap=True)
    for column in ("accuracy", "at edge", "p50 ms", "p95 ms", "p99 ms", "bytes up", "image"):
        table.add_column(column, justify="right", no_wrap=True)
    for mode in results.modes:
        table.add_row(mode.name, *figures(mode.tally))
    console.print(table)
    console.print(
        "  at edge: the share of answers that are the edge's own. ms: from sending an image to its answer,\n"
        f"  {plan.connections} at a time. bytes up: from edge to cloud, image: from device to edge; "
        "both are means per image.",
        highlight=False,
        soft_wrap=True,
    )
    for mode in results.modes:
        for problem in _problems(mode.tally, results.deadline_ms):
            console.print(f"{mode.name}: {problem}", highlight=False, soft_wrap=True, markup=False)
    console.print()
    verdict = f"{results.answered:,} of {results.sent:,} requests of this demo were answered with 200."
    for line in [*results.outage.lines(), "", verdict]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _problems(tally: Tally, deadline_ms: float) -> list[str]:
    """What went otherwise than the mode wanted."""
    problems = [f"{count} x {error}" for error, count in tally.errors.most_common()]
    if tally.degraded:
        fallbacks = {key: count for key, count in tally.answers.items() if key[0] == "edge_fallback"}
        problems.append(f"the edge stood in for the cloud: {breakdown(type(tally.answers)(fallbacks))}")
    late_ms = tally.slowest_ms - deadline_ms
    if late_ms > GRACE_MS:
        problems.append(
            f"the slowest came {late_ms:.0f} ms after its deadline: TOO LATE, over {GRACE_MS:.0f} ms"
        )
    return problems
