"""Several clouds and what may be sent to them, against real gRPC servers that do as they are told."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from edge_node.allowance import Allowance, Budgets
from edge_node.breaker import Breaker, Rules, State
from edge_node.cloud import Attempt
from edge_node.cloud_client import CloudClient
from edge_node.clouds import Clouds
from edge_node.hedging import Hedging
from inference_core.errors import (
    AllowanceSpent,
    BreakerOpen,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
    SwitchedOff,
)
from tests.edge_node.scripted_cloud import (
    PATIENCE_S,
    Code,
    ScriptedCloud,
    aborting,
    answering,
    message,
    query,
)

pytestmark = pytest.mark.anyio


class Rig:
    """Some clouds, the way to them, and what was sent."""

    def __init__(
        self, clouds: list[ScriptedCloud], budgets: Budgets, hedging: Hedging | None, failures: int
    ) -> None:
        self.clouds = clouds
        self.allowance = Allowance(budgets)
        self.sent: Counter[tuple[int, Attempt]] = Counter()
        self._changed = asyncio.Event()
        self.breakers = [
            Breaker(Rules(failures), 0.0, lambda: 1.0, lambda _: self._changed.set()) for _ in clouds
        ]
        self.ready = [False for _ in clouds]
        self.way = Clouds([self._client(n) for n in range(len(clouds))], self.allowance, hedging)

    def _client(self, number: int) -> CloudClient:
        def admit(kind: Attempt, nbytes: int) -> None:
            self.allowance.take(0.0, kind, nbytes)
            self.sent[number, kind] += 1

        def connected(now: bool) -> None:
            self.ready[number] = now
            self._changed.set()

        return CloudClient(
            f"127.0.0.1:{self.clouds[number].port}",
            self.breakers[number],
            connect_timeout_s=0.5,
            patience_s=PATIENCE_S,
            max_message_bytes=1 << 20,
            on_connection=connected,
            admit=admit,
            streams=False,
        )

    async def infer(self, timeout_s: float = PATIENCE_S) -> list[float]:
        return [float(value) for value in (await self.way.infer(query(), timeout_s)).logits[0]]

    async def fails(self, timeout_s: float = PATIENCE_S) -> CloudUnavailable:
        with pytest.raises(CloudUnavailable) as caught:
            await self.way.infer(query(), timeout_s)
        return caught.value

    async def until(self, over: Callable[[], bool]) -> None:
        """Wait for what only a connection or a breaker can change."""
        async with asyncio.timeout(PATIENCE_S):
            while not over():
                self._changed.clear()
                await self._changed.wait()

    def is_closed(self, number: int) -> bool:
        return self.breakers[number].state is State.CLOSED

    def asked(self) -> list[int]:
        return [len(cloud.requests) for cloud in self.clouds]


@contextlib.asynccontextmanager
async def rig(
    number: int, budgets: Budgets | None = None, hedging: Hedging | None = None, failures: int = 1
) -> AsyncIterator[Rig]:
    clouds = [ScriptedCloud() for _ in range(number)]
    for cloud in clouds:
        await cloud.start()
    made = Rig(clouds, budgets or Budgets(), hedging, failures)
    made.way.start()
    try:
        await made.until(lambda: all(made.ready))
        yield made
    finally:
        await made.way.close()
        for cloud in clouds:
            cloud.release.set()
            await cloud.stop()


async def gone(r: Rig, number: int) -> None:
    """Stop a cloud, and wait until the edge knows."""
    await r.clouds[number].stop()
    await r.until(lambda: not r.ready[number])


async def test_clouds_take_turns() -> None:
    async with rig(3) as r:
        for _ in range(30):
            await r.infer()
        assert r.asked() == [10, 10, 10]


async def test_one_that_is_gone_is_passed_over_at_no_cost() -> None:
    async with rig(2) as r:
        await gone(r, 0)
        r.way.check(PATIENCE_S)
        for _ in range(10):
            await r.infer()
        assert r.sent == {(1, Attempt.FIRST): 10}
        await gone(r, 1)
        with pytest.raises(CloudUnreachable):
            r.way.check(PATIENCE_S)
        assert isinstance(await r.fails(), CloudUnreachable)


async def test_what_is_lost_on_its_way_is_asked_of_another() -> None:
    async with rig(2) as r:
        for cloud in r.clouds:
            cloud.behave = cloud.held
        call = asyncio.create_task(r.infer())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(
                [asyncio.create_task(cloud.began.wait()) for cloud in r.clouds],
                return_when=asyncio.FIRST_COMPLETED,
            )
        first = r.asked().index(1)
        r.clouds[1 - first].behave = answering(message())
        await r.clouds[first].stop()
        assert await call == [1.0, 2.0, 3.0]
        assert r.sent == {(first, Attempt.FIRST): 1, (1 - first, Attempt.RETRY): 1}


async def test_it_is_asked_again_once_and_never_after_an_answer() -> None:
    async with rig(3) as r:
        for cloud in r.clouds:
            cloud.behave = aborting(Code.UNAVAILABLE)
        error = await r.fails()
        assert isinstance(error, CloudUnreachable)
        assert sum(r.asked()) == 2
        assert error.bytes_up == sum(each.ByteSize() for cloud in r.clouds for each in cloud.requests)
        for cloud in r.clouds:
            cloud.behave = aborting(Code.NOT_FOUND)
        await r.fails()
        assert sum(r.asked()) == 3


async def test_retries_end_when_they_are_many() -> None:
    async with rig(2) as r:
        for cloud in r.clouds:
            cloud.behave = aborting(Code.UNAVAILABLE)
        for _ in range(100):
            await r.fails()
        assert sum(r.asked()) <= 105


async def test_an_open_breaker_costs_no_time_and_one_request_goes_up_as_the_trial() -> None:
    async with rig(1) as r:
        (cloud,) = r.clouds
        cloud.behave = aborting(Code.INTERNAL)
        await r.fails()
        cloud.behave = cloud.held
        cloud.began.clear()
        r.way.check(PATIENCE_S)
        assert isinstance(await r.fails(), BreakerOpen)  # although the cloud is silent
        await cloud.began.wait()
        with pytest.raises(BreakerOpen):
            r.way.check(PATIENCE_S)
        assert isinstance(await r.fails(), BreakerOpen)
        assert r.sent == {(0, Attempt.FIRST): 1, (0, Attempt.TRIAL): 1}
        cloud.release.set()
        await r.until(lambda: r.is_closed(0))
        assert await r.infer() == [1.0, 2.0, 3.0]


async def test_beside_a_cloud_that_answers_another_is_tried_out() -> None:
    async with rig(2) as r:
        r.clouds[0].behave = aborting(Code.INTERNAL)
        while r.is_closed(0):
            with contextlib.suppress(CloudUnavailable):
                await r.infer()
        r.clouds[0].behave = answering(message())
        assert await r.infer() == [1.0, 2.0, 3.0]
        await r.until(lambda: r.is_closed(0))
        assert r.sent[0, Attempt.TRIAL] == 1


async def test_switched_off_means_that_nothing_goes_up() -> None:
    async with rig(1) as r:
        r.allowance.enabled = False
        for failing in (r.fails(), r.fails()):
            assert isinstance(await failing, SwitchedOff)
        with pytest.raises(SwitchedOff):
            r.way.check(PATIENCE_S)
        with pytest.raises(SwitchedOff):
            await r.way.probe(0, PATIENCE_S)
        assert r.asked() == [0]
        r.allowance.enabled = True
        await r.infer()


async def test_the_allowance_counts_what_was_in_vain() -> None:
    async with rig(2, Budgets(per_s=2.0)) as r:
        for cloud in r.clouds:
            cloud.behave = aborting(Code.UNAVAILABLE)
        assert isinstance(await r.fails(), CloudUnreachable)
        assert isinstance(await r.fails(), AllowanceSpent)
        assert sum(r.asked()) == 2


def practised() -> Hedging:
    hedging = Hedging()
    for _ in range(100):
        hedging.answered(0.001)
        hedging.request()
    return hedging


async def test_a_second_copy_goes_to_another_cloud_and_the_first_answer_wins() -> None:
    async with rig(2, hedging=practised()) as r:
        r.clouds[0].behave = r.clouds[0].held
        for _ in range(2):
            assert await r.infer() == [1.0, 2.0, 3.0]
        assert r.sent[1, Attempt.HEDGE] == 1
        assert r.breakers[0].level == 0


async def test_second_copies_have_a_budget() -> None:
    async with rig(1, hedging=practised(), failures=1000) as r:
        r.clouds[0].behave = r.clouds[0].held
        errors = [await r.fails(0.2)]
        errors += await asyncio.gather(*(r.fails(0.2) for _ in range(60)))
        assert {type(error) for error in errors} == {DeadlineExceeded}
        firsts, hedges = r.sent[0, Attempt.FIRST], r.sent[0, Attempt.HEDGE]
        assert hedges <= 5 + 0.05 * firsts + 1


async def test_samples_take_the_way_of_a_cloud_that_is_there() -> None:
    async with rig(2) as r:
        assert r.way.reachable()
        targets = {r.way.uplink(10).target for _ in range(2)}
        assert len(targets) == 2
        await gone(r, 0)
        assert {r.way.uplink(10).target for _ in range(4)} < targets
        assert r.sent[0, Attempt.SAMPLE] == 1
        r.allowance.enabled = False
        with pytest.raises(SwitchedOff):
            r.way.uplink(10)
        await gone(r, 1)
        assert not r.way.reachable()
        with pytest.raises(CloudUnreachable):
            r.way.uplink(10)
    assert r.sent == {(0, Attempt.SAMPLE): 1, (1, Attempt.SAMPLE): 5}


async def test_no_sample_goes_to_a_cloud_that_is_left_alone() -> None:
    async with rig(1) as r:
        r.clouds[0].behave = aborting(Code.INTERNAL)
        with contextlib.suppress(CloudUnavailable):
            await r.infer()
        assert r.breakers[0].state is State.OPEN
        assert not r.way.reachable()
        with pytest.raises(CloudUnreachable):
            r.way.uplink(10)
