"""When the link is asked for a sign of life, and what becomes of the answers."""

import asyncio
import math
from dataclasses import replace

import pytest

from edge_node.link import Estimate, Link
from edge_node.prober import Asked, Prober, due
from inference_core.errors import CloudUnreachable, DeadlineExceeded

GOOD = Estimate(0.05, 0.05, 1e6, 0.1, 1e6, 0.1, 1.0, lost=False)
LONG_AGO = Asked(100.0, 0)


def guess(padding: int) -> float:
    return 0.05 + padding / 1e6


@pytest.mark.parametrize(
    ("link", "asked", "padding"),
    [
        pytest.param(GOOD, LONG_AGO, None, id="well known"),
        pytest.param(replace(GOOD, lost=True), LONG_AGO, 0, id="lost"),
        pytest.param(replace(GOOD, lost=True), Asked(0.1, 0), None, id="lost, just asked"),
        pytest.param(replace(GOOD, age=math.inf), LONG_AGO, 0, id="never heard of"),
        pytest.param(replace(GOOD, age=6.0), LONG_AGO, 0, id="stale"),
        pytest.param(replace(GOOD, age=6.0), Asked(1.0, 0), None, id="stale, just asked"),
        pytest.param(replace(GOOD, up_spread=3.0), LONG_AGO, 2000, id="rate unknown"),
        pytest.param(replace(GOOD, up_spread=3.0), Asked(0.1, 2), 32_000, id="rate still unknown"),
        pytest.param(replace(GOOD, up_spread=3.0), Asked(0.1, 3), None, id="larger than anything sent"),
        pytest.param(replace(GOOD, up_spread=3.0), Asked(0.1, 4), None, id="all tried"),
    ],
)
def test_when_a_probe_is_due(link: Estimate, asked: Asked, padding: int | None) -> None:
    assert due(link, asked, 50_000, guess) == padding


def test_a_slow_link_is_not_filled_with_padding() -> None:
    unsure = replace(GOOD, up_spread=3.0)
    assert due(unsure, Asked(0.1, 2), 50_000, lambda padding: padding / 1e5) is None
    assert due(unsure, Asked(0.1, 1), 50_000, lambda padding: padding / 1e5) == 8000


class Far:
    """A cloud that answers probes after a while, by its own clock; or that fails."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[int] = []
        self.error: Exception | None = None
        self.answered = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def probe(self, padding: int, timeout_s: float) -> int:
        self.asked.append(padding)
        self.now += 0.05 + padding / 1e5 if self.error is None else timeout_s
        self.answered.set()
        if self.error is not None:
            raise self.error
        return 80


async def probed(far: Far, link: Link, times: int) -> None:
    prober = Prober(far, link, far.clock)
    prober.start()
    prober.want(20_000)
    async with asyncio.timeout(10):
        while len(far.asked) < times:
            far.answered.clear()
            await far.answered.wait()
            far.now += 0.3
    await prober.close()


def test_probes_find_round_trip_and_rate() -> None:
    far, link = Far(), Link()
    asyncio.run(probed(far, link, 3))
    estimate = link.estimate(far.now)
    assert far.asked == [0, 2000, 8000]
    assert estimate.round_trip == pytest.approx(0.05, rel=0.2)
    assert 0.5e5 < estimate.up < 2e5


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), CloudUnreachable("gone")])
def test_without_an_answer_the_link_is_lost_and_asked_again(error: Exception) -> None:
    far, link = Far(), Link()
    far.error = error
    asyncio.run(probed(far, link, 3))
    assert far.asked == [0, 0, 0]
    assert link.lost(far.now)


def test_a_bug_does_not_leave_a_lost_link_lost(caplog: pytest.LogCaptureFixture) -> None:
    far, link = Far(), Link()
    far.error = RuntimeError("a bug")

    async def watched() -> None:
        prober = Prober(far, link, far.clock)
        prober.start()
        async with asyncio.timeout(10):
            for _ in range(2):
                prober.want(0)
                far.answered.clear()
                await far.answered.wait()
                far.now += 6.0
        await prober.close()

    asyncio.run(watched())
    assert "failed unexpectedly" in caplog.text


def test_nobody_is_asked_when_nobody_wants_to_know() -> None:
    async def idle() -> list[int]:
        far = Far()
        prober = Prober(far, Link(), far.clock)
        prober.start()
        prober.want(1000)
        far.now += 60
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await prober.close()
        return far.asked

    assert asyncio.run(idle()) == []
