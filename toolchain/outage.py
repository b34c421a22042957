"""The cloud goes away under load and comes back: played for real, then told from the replies."""

import asyncio
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from toolchain.device import Device, Query, play_at_rate
from toolchain.images import LabelledImage
from toolchain.processes import Service
from toolchain.tally import OK, Reply, Tally, breakdown
from toolchain.ticker import Ticker

GRACE_MS = 50.0  # how much later than its deadline an answer may reach the device
MAX_RATE = 100.0  # images per second
LEAST_ESCALATED = 0.1  # with less, hardly anybody would notice that the cloud is away
_FORCED = 0.2
_TICK_S = 0.1


class Phase(StrEnum):
    """Where the cloud is when a request is answered."""

    BEFORE = "before"
    AWAY = "away"
    BACK = "back"


@dataclass(frozen=True)
class Timing:
    """Seconds: of load before the cloud is killed, until it is started again, and after it is ready."""

    before_s: float = 2.0
    away_s: float = 3.0
    back_s: float = 3.0


@dataclass(frozen=True)
class Moments:
    """Seconds of the monotonic clock: the cloud is killed, started again, and ready again."""

    killed_s: float
    started_s: float
    ready_s: float

    def phase(self, reply: Reply) -> Phase:
        """The phase in which `reply` came. Between start and readiness the cloud is still away."""
        if reply.done_s < self.killed_s:
            return Phase.BEFORE
        return Phase.AWAY if reply.done_s < self.ready_s else Phase.BACK


@dataclass(frozen=True)
class Outage:
    """What the devices saw of it. `latest_ms` is the longest that a request was open, less its deadline.

    `resumed_s` is the time from the cloud's readiness to the first answer that is the cloud's again: 0
    when that was there before the readiness was seen, None when none came.
    """

    total: Tally
    phases: dict[Phase, Tally]
    away_s: float
    latest_ms: float
    resumed_s: float | None

    @property
    def in_time(self) -> bool:
        """Whether no request was open for longer than its deadline and `GRACE_MS`."""
        return self.latest_ms <= GRACE_MS

    def lines(self) -> list[str]:
        """The outage in words."""
        total = self.total
        late = f"{abs(self.latest_ms):.0f} ms {'after' if self.latest_ms > 0 else 'before'} its deadline"
        lines = [
            f"The cloud was killed under load and was away for {self.away_s:.1f} s.",
            f"  {total.sent} requests, {total.answered} answered with 200, {total.refused} refused, "
            f"{total.unanswered} not answered",
            f"  the slowest came {late}" + ("" if self.in_time else f": TOO LATE, over {GRACE_MS:.0f} ms"),
        ]
        lines += [f"  {phase:<6}  {breakdown(tally.answers)}" for phase, tally in self.phases.items()]
        if self.resumed_s is None:
            lines.append("  NO ESCALATION SUCCEEDED after the cloud came back")
        else:
            lines.append(f"  first escalation {self.resumed_s:.2f} s after the cloud was ready again")
        return lines + [f"  {count} x {error}" for error, count in total.errors.most_common()]


def tell(replies: Sequence[Reply], moments: Moments, deadline_ms: float) -> Outage:
    """The outage as `replies` tell it; each request had `deadline_ms`."""
    phases = {phase: Tally() for phase in Phase}
    for reply in replies:
        phases[moments.phase(reply)].add(reply)
    back = (r.done_s for r in replies if r.source == "cloud" and r.done_s >= moments.started_s)
    first = min(back, default=None)
    total = Tally.of(replies)
    return Outage(
        total,
        phases,
        moments.ready_s - moments.killed_s,
        total.slowest_ms - deadline_ms,
        None if first is None else max(0.0, first - moments.ready_s),
    )


def forced_threshold(replies: Iterable[Reply]) -> float | None:
    """The threshold that would have escalated some of these images of a cascade; None where enough were."""
    replies = [reply for reply in replies if reply.status == OK]
    escalated = sum(reply.reason != "confident" for reply in replies)
    confidences = sorted(reply.confidence for reply in replies if reply.confidence is not None)
    if not confidences or escalated >= LEAST_ESCALATED * len(replies):
        return None
    # What is below the threshold is escalated.
    return min(1.0, math.nextafter(confidences[int(_FORCED * len(confidences))], 1.0))


async def play_outage(
    device: Device,
    cloud: Service,
    images: Sequence[LabelledImage],
    query: Query,
    rate: float,
    timing: Timing,
    ticker: Ticker,
) -> Outage:
    """Play `images` round and round at `rate` per second; kill the cloud, and start it again, by `timing`.

    Raises `ServiceFailed` when the cloud does not come back.
    """
    replies: list[Reply] = []
    stop = asyncio.Event()

    async def watch(what: str, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            sources = ", ".join(f"{k} {n}" for k, n in Tally.of(replies).by_source().most_common())
            ticker.show(f"outage: {what}   {len(replies)} answers: {sources}")
            await asyncio.sleep(_TICK_S)

    load = asyncio.create_task(
        play_at_rate(
            device,
            itertools.cycle(images),
            query,
            rate,
            replies.append,
            stop=stop,
            max_open=max(2, int(rate)),
        )
    )
    try:
        await watch("the cloud is there", timing.before_s)
        killed_s = time.monotonic()
        cloud.kill()
        ticker.say(f"outage: the cloud is killed (SIGKILL) after {len(replies)} answers")
        await watch("the cloud is away", timing.away_s)
        started_s = time.monotonic()
        ticker.show("outage: the cloud is starting")
        await cloud.start()
        ready_s = time.monotonic()
        ticker.say(f"outage: the cloud is ready again, {ready_s - started_s:.1f} s after its start")
        await watch("the cloud is back", timing.back_s)
    finally:
        stop.set()
        await load
    return tell(replies, Moments(killed_s, started_s, ready_s), device.served.deadline_ms)
