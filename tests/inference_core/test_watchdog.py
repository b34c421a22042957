"""Runs that do not end, really run: told to end, given up, and engines made anew."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from inference_core.engine import RESTART_AFTER, Engine
from inference_core.errors import ModelError, NotReady
from inference_core.watchdog import USUAL_TIMES, Event, Watchdog
from tests import wedges
from tests.bundles import SURE, UNSURE, pixels

HANGS, ANSWERS = {"input": pixels(SURE)}, {"input": pixels(UNSURE)}
Happened = list[tuple[Event, str]]


@pytest.fixture
def happened() -> Happened:
    return []


@pytest.fixture
def watchdog(happened: Happened) -> Iterator[Watchdog]:
    made = Watchdog(0.2, lambda event, model: happened.append((event, model)))
    made.start()
    yield made
    made.stop()


def engine(data: bytes, watchdog: Watchdog, source: Callable[[], bytes] | None = None) -> Engine:
    return Engine(data, name="edge.onnx", model_name="colors", watchdog=watchdog, source=source)


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_run_over_the_limit_is_ended_and_counted(watchdog: Watchdog, happened: Happened) -> None:
    looping = engine(wedges.looping(), watchdog)
    looping.run(ANSWERS)
    with pytest.raises(ModelError, match=r"^edge\.onnx: the run was ended after 0\.\d s$"):
        looping.run(HANGS)
    assert happened == [(Event.ABANDONED, "colors")]
    assert not watchdog.under_way
    assert looping.run(ANSWERS)["logits"].shape == (1, 3)


def test_a_slow_model_gets_many_times_what_it_usually_takes(watchdog: Watchdog, happened: Happened) -> None:
    slow = engine(wedges.looping(1_000_000), watchdog)
    slow.usual_s = 60.0 / USUAL_TIMES
    slow.run(HANGS)
    assert happened == []


def test_failures_in_a_row_bring_a_new_session_and_refusals_meanwhile(
    watchdog: Watchdog, happened: Happened
) -> None:
    reading, given = threading.Event(), threading.Event()

    def source() -> bytes:
        reading.set()
        assert given.wait(10)
        return wedges.looping()

    looping = engine(wedges.looping(), watchdog, source)
    for _ in range(RESTART_AFTER):
        with pytest.raises(ModelError):
            looping.run(HANGS)
    assert reading.wait(10)
    with pytest.raises(NotReady, match="model 'colors' is being restarted"):
        looping.run(ANSWERS)
    given.set()
    eventually(lambda: (Event.RESTARTED, "colors") in happened)
    eventually(lambda: not looping.restarting)
    assert looping.run(ANSWERS)["logits"].shape == (1, 3)


def test_one_run_that_ends_well_between_failures_is_enough(watchdog: Watchdog, happened: Happened) -> None:
    looping = engine(wedges.looping(), watchdog, wedges.looping)
    for _ in range(RESTART_AFTER):
        with pytest.raises(ModelError):
            looping.run(HANGS)
        looping.run(ANSWERS)
    assert Event.RESTARTED not in {event for event, _ in happened}


def test_what_cannot_be_loaded_again_goes_on_as_it_is(
    watchdog: Watchdog, happened: Happened, caplog: pytest.LogCaptureFixture
) -> None:
    looping = engine(wedges.looping(), watchdog, lambda: b"nonsense")
    for _ in range(RESTART_AFTER):
        with pytest.raises(ModelError):
            looping.run(HANGS)
    eventually(lambda: "cannot be loaded again" in caplog.text and not looping.restarting)
    assert looping.run(ANSWERS)["logits"].shape == (1, 3)
    assert Event.RESTARTED not in {event for event, _ in happened}


def test_a_node_that_heeds_nothing_is_told_of_with_its_thread(watchdog: Watchdog, happened: Happened) -> None:
    stuck: list[int] = []
    watchdog.on_stuck(stuck.append)
    data = wedges.comparing(40_000)
    deaf = engine(data, watchdog, lambda: data)

    def hang() -> None:
        with pytest.raises(ModelError):
            deaf.run(HANGS)

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    eventually(lambda: (Event.RESTARTED, "colors") in happened)
    assert thread.is_alive()
    assert watchdog.under_way
    assert stuck == [thread.ident]
    assert happened[:2] == [(Event.ABANDONED, "colors"), (Event.STUCK, "colors")]
    eventually(lambda: not deaf.restarting)
    assert np.isfinite(deaf.run(ANSWERS)["logits"]).all()


def test_without_threads_an_engine_is_not_restarting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made = engine(wedges.looping(), Watchdog(10), wedges.looping)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        made.stuck()
    assert not made.restarting
    assert made.run(ANSWERS)["logits"].shape == (1, 3)


def test_a_watchdog_outlives_what_it_cannot_deal_with(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    def tell(event: Event, _: str) -> None:
        told.append(event)
        if len(told) == 1:
            raise RuntimeError("can't start new thread")

    made = Watchdog(0.2, tell)
    made.start()
    looping = engine(wedges.looping(), made)
    for _ in range(2):
        with pytest.raises(ModelError, match="was ended"):
            looping.run(HANGS)
    made.stop()
    assert told == [Event.ABANDONED] * 2
    assert "cannot be dealt with" in caplog.text
