"""The load generator, against real servers whose every answer is known beforehand."""

import numpy as np
import pytest

from benchmarks.http1 import HttpConnection, post
from benchmarks.load import Broken, Reply, closed_loop, fixed_rate, open_loop, poisson
from benchmarks.processes import free_port
from tests.benchmarks.server import BAD, GOOD, STALL_S, running

AT_ONCE = (0.0,) * 100  # when the requests are due
REQUEST = post("/", b"x" * 100, "application/octet-stream")


def check(reply: Reply) -> str | None:
    return None if reply.body == GOOD else f"it says {reply.body!r}"


def dial(port: int) -> HttpConnection:
    return HttpConnection(port, REQUEST)


def test_throughput_and_latency_are_those_of_the_server() -> None:
    service_us, clients = 2000.0, 4
    with running("good", service_us) as port:
        run = closed_loop(lambda: dial(port), check, clients=clients, seconds=1.0)
    assert run.errors == 0
    assert 0.1e6 / service_us < run.per_s <= 1.02e6 / service_us
    # Each waits for all the others and for itself, and nobody can be faster than that.
    assert 0.98 * clients * service_us < run.percentile_us(50) < 10 * clients * service_us
    assert run.percentile_us(99) >= run.percentile_us(50)
    assert 1 <= len(run.kept) <= len(run.latencies_ns)
    assert {reply.body for reply in run.kept} == {GOOD}


@pytest.mark.parametrize(
    ("behaviour", "kind", "why"),
    [
        ("refuse", "refused", "503 b'no'"),
        ("wrong", "wrong", f"it says {BAD!r}"),
        ("close", "broken", "the server ended the connection"),
    ],
)
def test_what_goes_wrong_is_counted_with_a_reason_and_not_timed(behaviour: str, kind: str, why: str) -> None:
    with running(behaviour, 100, 10) as port:
        run = open_loop(lambda: dial(port), check, due_s=AT_ONCE, clients=3, patience_s=60)
    counts = {name: getattr(run, name) for name in ("refused", "wrong", "broken", "unanswered")}
    assert counts == dict.fromkeys(counts, 0) | {kind: run.errors}
    assert run.errors == len(AT_ONCE) // 10
    assert len(run.latencies_ns) == len(AT_ONCE) - run.errors
    assert run.examples == {kind: why}


@pytest.mark.parametrize(
    ("behaviour", "kind"), [("refuse", "refused"), ("wrong", "wrong"), ("close", "broken")]
)
def test_a_closed_loop_goes_on_after_errors(behaviour: str, kind: str) -> None:
    with running(behaviour, 100, 3) as port:
        run = closed_loop(lambda: dial(port), check, clients=3, seconds=1.0)
    assert getattr(run, kind) == run.errors > 0
    # Two of three are good; the first and the last may lie outside.
    assert abs(len(run.latencies_ns) - 2 * run.errors) <= 6


@pytest.mark.parametrize("behaviour", ["chunks", "halves"])
def test_answers_in_pieces_are_put_together(behaviour: str) -> None:
    with running(behaviour, 0, 3) as port:
        run = open_loop(lambda: dial(port), check, due_s=AT_ONCE, clients=2, patience_s=60)
    assert run.errors == 0
    assert len(run.latencies_ns) == len(AT_ONCE)


def test_an_open_loop_charges_a_stall_to_all_who_came_meanwhile() -> None:
    rate, requests = 200.0, 200
    with running("stall", 0, 100) as port:
        run = open_loop(lambda: dial(port), check, due_s=fixed_rate(rate, requests / rate), clients=1)
    assert run.errors == 0
    assert len(run.latencies_ns) == requests
    late = sum(taken > STALL_S / 2 * 1e9 for taken in run.latencies_ns)
    # One stalls, at least those due in the first half of it wait for more than its second half.
    assert late >= 0.9 * rate * STALL_S / 2


def test_a_closed_loop_would_not_have_seen_it() -> None:
    with running("stall", 0, 100) as port:
        run = closed_loop(lambda: dial(port), check, clients=1, seconds=1.5, warm_up_s=0.0)
    stalls = sum(taken > STALL_S / 2 * 1e9 for taken in run.latencies_ns)
    assert stalls <= 1 + len(run.latencies_ns) / 100


def test_what_an_open_loop_gives_up_on_is_counted() -> None:
    with running("good", 20_000) as port:
        run = open_loop(lambda: dial(port), check, due_s=fixed_rate(500, 0.2), clients=2, patience_s=0.1)
    assert run.unanswered > 50
    assert run.unanswered + len(run.latencies_ns) == 100


def test_schedules_have_their_rate() -> None:
    even, random = fixed_rate(100, 2), poisson(1000, 20, seed=1)
    assert np.allclose(np.diff(even), 0.01)
    assert len(even) == 200
    assert len(random) == pytest.approx(20_000, rel=0.05)
    gaps = np.diff(random)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as only exponential gaps are
    assert (poisson(1000, 20, seed=1) == random).all()


def test_nobody_listening_is_said() -> None:
    port = free_port()
    with pytest.raises(Broken, match=f"port {port}"):
        closed_loop(lambda: dial(port), check, clients=1, seconds=0.1)
