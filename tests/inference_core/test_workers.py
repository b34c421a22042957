"""A pool that can do without a thread that does not come back."""

import threading
import time

import pytest

from inference_core.errors import ModelError
from inference_core.workers import Workers


def test_work_is_done_and_failures_are_its_callers() -> None:
    with Workers(2, "test") as workers:
        assert list(workers.map(abs, [-1, -2, -3])) == [1, 2, 3]
        with pytest.raises(ZeroDivisionError):
            workers.submit(lambda: 1 // 0).result(5)
        assert workers.submit(pow, 2, 3).result(5) == 8


def test_no_more_run_at_a_time_than_there_are_threads() -> None:
    both = threading.Barrier(2)
    with Workers(2, "test") as workers:
        jobs = [workers.submit(both.wait, 5) for _ in range(4)]
        assert sorted(job.result(5) for job in jobs) == [0, 0, 1, 1]


def test_a_thread_that_is_given_up_is_replaced_and_its_caller_told() -> None:
    entered, gate = threading.Event(), threading.Event()
    identity: list[int] = []

    def hang() -> None:
        identity.append(threading.get_ident())
        entered.set()
        gate.wait(10)

    workers = Workers(1, "test")
    hanging = workers.submit(hang)
    assert entered.wait(5)
    behind = workers.submit(threading.get_ident)
    workers.give_up(identity[0])
    with pytest.raises(ModelError, match="could not be ended"):
        hanging.result(5)
    assert behind.result(5) != identity[0]
    workers.give_up(identity[0])  # it is none of theirs any more
    started = time.monotonic()
    workers.shutdown()
    assert time.monotonic() - started < 1
    gate.set()


def test_an_idle_thread_and_a_strange_one_are_not_given_up() -> None:
    with Workers(1, "test") as workers:
        identity = workers.submit(threading.get_ident).result(5)
        for who in (identity, threading.get_ident()):
            workers.give_up(who)
        assert workers.submit(threading.get_ident).result(5) == identity


def test_after_a_shutdown_nothing_is_taken_and_what_waits_is_cancelled() -> None:
    entered, gate = threading.Event(), threading.Event()

    def hold() -> bool:
        entered.set()
        return gate.wait(10)

    workers = Workers(1, "test")
    held = workers.submit(hold)
    assert entered.wait(5)
    waiting = workers.submit(abs, 1)
    workers.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError):
        workers.submit(abs, 1)
    gate.set()
    assert held.result(5) is True


def test_the_caller_is_told_where_no_thread_can_take_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate = threading.Event(), threading.Event()

    def hang() -> int:
        entered.set()
        gate.wait(10)
        return threading.get_ident()

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    workers = Workers(1, "test")
    hanging = workers.submit(hang)
    assert entered.wait(5)
    (thread,) = (one for one in threading.enumerate() if one.name == "test" and one.ident)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError):
            workers.give_up(thread.ident or 0)
        with pytest.raises(ModelError):
            hanging.result(1)
    gate.set()
    assert workers.submit(pow, 2, 3).result(5) == 8
    workers.shutdown()
