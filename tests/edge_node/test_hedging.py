"""Second copies: when, how many, and whose answer counts."""

import asyncio
from collections.abc import Coroutine

import pytest

from edge_node.hedging import BUDGET, BURST, Hedging, first_of

pytestmark = pytest.mark.anyio


def test_the_delay_is_what_most_answers_are_sooner_than() -> None:
    hedging = Hedging()
    for n in range(19):
        hedging.answered(n / 1000)
        assert hedging.delay_s is None
    hedging.answered(0.019)
    assert hedging.delay_s == 0.019
    for n in range(200):
        hedging.answered((n % 100) / 1000)
    assert hedging.delay_s == pytest.approx(0.095, abs=0.01)


def test_the_budget_is_a_share_of_the_requests() -> None:
    hedging, spent = Hedging(), 0
    for _ in range(1000):
        hedging.request()
        spent += hedging.spend()
    assert spent == pytest.approx(1000 * BUDGET, abs=2)


def test_an_unspent_budget_does_not_pile_up() -> None:
    hedging = Hedging()
    for _ in range(10_000):
        hedging.request()
    assert sum(hedging.spend() for _ in range(100)) == BURST


class Race:
    """Two calls that end when they are told to."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ends: list[asyncio.Future[str]] = [loop.create_future(), loop.create_future()]
        self.began = [asyncio.Event(), asyncio.Event()]
        self.cancelled: list[int] = []

    async def call(self, number: int) -> str:
        self.began[number].set()
        try:
            return await self.ends[number]
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise

    def second(self) -> Coroutine[None, None, str]:
        return self.call(1)


async def test_a_prompt_answer_needs_no_second_copy() -> None:
    race = Race()
    race.ends[0].set_result("first")
    assert await first_of(race.call(0), 10.0, race.second) == "first"
    assert not race.began[1].is_set()


async def test_the_first_answer_wins_and_the_other_is_cancelled() -> None:
    for winner, loser in ((0, 1), (1, 0)):
        race = Race()
        result = asyncio.create_task(first_of(race.call(0), 0.001, race.second))
        await race.began[1].wait()
        race.ends[winner].set_result("won")
        assert await result == "won"
        await asyncio.sleep(0)
        assert race.cancelled == [loser]


async def test_a_failure_waits_for_the_other_answer() -> None:
    race = Race()
    result = asyncio.create_task(first_of(race.call(0), 0.001, race.second))
    await race.began[1].wait()
    race.ends[1].set_exception(ValueError("lost"))
    await asyncio.sleep(0)
    race.ends[0].set_result("late but there")
    assert await result == "late but there"


async def test_when_both_fail_it_fails() -> None:
    race = Race()
    result = asyncio.create_task(first_of(race.call(0), 0.001, race.second))
    await race.began[1].wait()
    for end in race.ends:
        end.set_exception(ValueError("lost"))
    with pytest.raises(ValueError, match="lost"):
        await result


async def test_without_a_second_copy_the_first_is_waited_for() -> None:
    race = Race()
    result = asyncio.create_task(first_of(race.call(0), 0.001, lambda: None))
    await asyncio.sleep(0.01)
    race.ends[0].set_result("first")
    assert await result == "first"


async def test_who_hangs_up_ends_both() -> None:
    race = Race()
    result = asyncio.create_task(first_of(race.call(0), 0.001, race.second))
    await race.began[1].wait()
    result.cancel()
    with pytest.raises(asyncio.CancelledError):
        await result
    await asyncio.sleep(0)
    assert sorted(race.cancelled) == [0, 1]
