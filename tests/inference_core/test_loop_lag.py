"""The loop's lag: told while the loop is stuck, remembered for a while, forgotten after."""

import asyncio
import threading
import time

import pytest
import uvloop

from inference_core.loop_lag import LoopLag


def test_an_idle_loop_has_next_to_none() -> None:
    seen: list[float] = []

    async def idle() -> float:
        lag = LoopLag(seen.append)
        lag.start()
        await asyncio.sleep(0.3)
        return lag.recent_s

    uvloop.run(idle())
    assert 2 <= len(seen) <= 6
    assert min(seen) < 0.02


def test_a_stuck_loop_is_seen_from_another_thread_and_fades_afterwards() -> None:
    stuck_s = 0.3
    during: list[float] = []

    async def stick() -> tuple[float, float]:
        lag = LoopLag()
        lag.start()
        await asyncio.sleep(0.1)
        watcher = threading.Timer(stuck_s * 0.8, lambda: during.append(lag.recent_s))
        watcher.start()
        time.sleep(stuck_s)  # noqa: ASYNC251 - this is the fault
        watcher.join()
        await asyncio.sleep(0.06)
        after = lag.recent_s
        await asyncio.sleep(0.6)
        return after, lag.recent_s

    after, later = uvloop.run(stick())
    assert during[0] > 0.1
    assert after > stuck_s * 0.6
    assert later < after * 0.7


def test_one_that_is_stopped_measures_nothing() -> None:
    seen: list[float] = []

    async def stop() -> float:
        lag = LoopLag(seen.append)
        assert lag.recent_s == 0.0
        lag.start()
        lag.stop()
        await asyncio.sleep(0.12)
        return lag.recent_s

    assert uvloop.run(stop()) == pytest.approx(0.0)
    assert seen == []
