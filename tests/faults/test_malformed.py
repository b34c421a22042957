"""Bytes that no client should send, and clients that send none: each is refused, and nobody else notices."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inference_core.connections import MAX_TURNED_AWAY
from tests.bundles import SURE, picture, write_bundle
from tests.faults.attack import Findings
from tests.faults.attacker import Attacker, Ways, attacker, by_frames, by_grpc, by_http, by_silence
from tests.faults.mutate_grpc import GrpcMutator
from tests.faults.mutate_http import LIMIT, HttpMutator
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.faults.watched import MOST_LINES, State, naive, p99_ms, state
from tests.joint.device import Answer, Answers, Load
from tests.joint.services import Service, Services

GROWTH = 0.05
SLOWER, SLACK_MS = 2.0, 5.0  # the second is what a busy machine does to the 99th of a hundred
RATE = 100.0  # requests in order a second
TURN = 400  # hostile cases, and half as many requests in order
MEASURED, MEASURE = 3, 2000  # times that latency is looked at before it counts as worse, on how many cases
DEADLINE_MS = 2000
SETTLED_S = 45.0  # gRPC keeps what has spoken nonsense until its own time is over
TWIN = 400
SHOWN = 3
SMALL: dict[str, Any] = {"max_pixels": 1_000_000}
Both = tuple[Service, Service, Load]


@pytest.fixture
def both(services: Services, tmp_path: Path) -> Iterator[Both]:
    """An edge and its cloud, and devices whose requests need both."""
    bundle = write_bundle(tmp_path / "colors")
    cloud = services.cloud(bundle, max_message_bytes=LIMIT, **SMALL).wait_ready()
    edge = services.edge(bundle, cloud.ports[1], max_body_bytes=LIMIT, **SMALL).wait_ready()
    load = Load(edge.ports[0], [picture(SURE)], rate=RATE, deadline_ms=DEADLINE_MS, mode="cloud")
    with load:
        load.go_on(0.5)
        yield edge, cloud, load


def test_malformed_http(row: Row, both: Both) -> None:
    edge, cloud, load = both
    sides = ((edge, True, row.count(4000, 80_000)), (cloud, False, row.count(2400, 50_000)))
    cases = []
    for service, predict, count in sides:
        made = partial(by_http, mutator=HttpMutator(row.seed, predict=predict))
        found, twin = both_ways(row, service, load, count, made, 0)
        cases.append(Case(f"malformed HTTP at the {service.name}", found, twin, "our checks"))
    row.judge(*cases)


def test_malformed_grpc(row: Row, both: Both) -> None:
    edge, cloud, load = both
    cases = []
    for service, images_too in ((edge, False), (cloud, True)):
        made = partial(by_grpc, mutator=GrpcMutator(row.seed, images_too=images_too))
        found, twin = both_ways(row, service, load, row.count(1500, 30_000), made, 1)
        cases.append(Case(f"malformed gRPC at the {service.name}", found, twin, "our checks"))
    row.judge(*cases)


def test_malformed_frames(row: Row, both: Both) -> None:
    """HTTP/2 itself, and what gRPC makes of names, lengths and flags that are wrong."""
    edge, cloud, load = both
    cases = []
    for service in (edge, cloud):
        made = partial(by_frames, mutator=GrpcMutator(row.seed, images_too=False))
        found, twin = both_ways(row, service, load, row.count(300, 5000), made, 1)
        cases.append(Case(f"malformed HTTP/2 at the {service.name}", found, twin, "our own server"))
    row.judge(*cases)


def both_ways(
    row: Row, service: Service, load: Load, count: int, ways: Callable[[int], Ways], at: int
) -> tuple[Finding, Finding]:
    """What becomes of so many cases at the service's port number `at`, and of some at that of a plain one."""
    with attacker(partial(ways, service.ports[at])) as stranger:
        found = under_attack(row, service, load, count, stranger)
    with naive() as (_, *ports), attacker(partial(ways, ports[at])) as twin:
        twin.hostile(range(TWIN))
    return found, _red(twin)


def under_attack(
    row: Row,
    service: Service,
    load: Load,
    count: int,
    stranger: Attacker,
) -> Finding:
    """What became of so many cases, while a load goes on beside them and, in turns, without them."""
    stranger.warm_up()
    before = state(service)
    quiet, beside = _in_turns(row, load, stranger, range(count))
    slower = _slower(quiet, beside)
    for _ in range(MEASURED - 1):  # the machine may have been busy with something else
        if slower:
            again = _in_turns(row, load, stranger, range(min(MEASURE, count)))
            beside = Answers((*beside, *again[1]))
            slower = _slower(*again)
    failed = [a for a in beside if a.status != 200]
    after = _settled(service, before)
    findings = stranger.findings
    broken = (*findings.wrong[:SHOWN], *_changes(service, before, after), *slower)
    figure = (
        f"p99 of {len(beside)} in order {p99_ms(quiet):.1f} -> {p99_ms(beside):.1f} ms, "
        f"memory {after.resident / before.resident - 1:+.1%}, {_shown(findings)}"
    )
    return Finding(count, len(findings.wrong) + len(failed), figure, broken)


def _in_turns(row: Row, load: Load, stranger: Attacker, cases: range) -> tuple[Answers, Answers]:
    """The load's answers beside requests in order, and those beside the cases."""
    quiet: list[Answer] = []
    beside: list[Answer] = []
    for begin in range(0, len(cases), TURN):
        part = cases[begin : begin + TURN]
        began = stranger.friendly(part[: TURN // 2])
        quiet += load.answers.sent_in(began)
        began = stranger.hostile(part)
        beside += load.answers.sent_in(began)
        row.progress(part.stop, cases.stop, "cases")
    return Answers(quiet), Answers(beside)


def _slower(quiet: Answers, beside: Answers) -> tuple[str, ...]:
    before_ms, now_ms = p99_ms(quiet), p99_ms(beside)
    if now_ms <= max(SLOWER * before_ms, before_ms + SLACK_MS):
        return ()
    return (f"p99 of requests in order went from {before_ms:.1f} ms to {now_ms:.1f} ms",)


def _settled(service: Service, before: State) -> State:
    """What the service takes once what was opened has been closed."""
    deadline = time.monotonic() + SETTLED_S
    while (now := state(service)).descriptors > before.descriptors + 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def _changes(service: Service, before: State, after: State) -> Iterator[str]:
    if service.process.poll() is not None:
        yield f"{service.name} ended with status {service.process.returncode}"
    growth = after.resident / before.resident - 1
    if growth > GROWTH:
        yield f"memory of {service.name} grew by {growth:.1%}"
    if after.descriptors > before.descriptors + 4:
        yield f"{service.name} holds {after.descriptors} descriptors, it was {before.descriptors}"
    if after.lines > before.lines + MOST_LINES:
        yield f"{service.name} logged {after.lines - before.lines} lines"
    if "Traceback" in service.log:
        yield f"{service.name} logged a stack trace"


def _shown(findings: Findings) -> str:
    return ", ".join(f"{count} {status}" for status, count in findings.statuses.most_common(6))


def _red(twin: Attacker) -> Finding:
    findings = twin.findings
    return Finding(max(findings.cases, 1), len(findings.wrong), _shown(findings), tuple(findings.wrong[:1]))


# ---- clients that take their time

SLOW_BOUNDS: dict[str, Any] = {
    "head_timeout_ms": 500,
    "body_timeout_ms": 500,
    "idle_timeout_ms": 500,
    "max_connections": 100,
}
# What is open, what is told that there are too many, and what is being dropped just then.
MOST_OPEN = SLOW_BOUNDS["max_connections"] + 2 * MAX_TURNED_AWAY


def test_clients_that_never_end(row: Row, services: Services, tmp_path: Path) -> None:
    """Heads and bodies without an end, silence, and four times as many connections as may be open."""
    edge = services.edge(write_bundle(tmp_path / "colors"), **SLOW_BOUNDS).wait_ready()
    count = row.count(2400, 40_000)
    with Load(edge.ports[0], [picture(SURE)], rate=RATE, deadline_ms=DEADLINE_MS) as load:
        load.go_on(0.5)
        with attacker(partial(by_silence, edge.ports[0], edge.process.pid, MOST_OPEN)) as stranger:
            found = under_attack(row, edge, load, count, stranger)
    with (
        naive() as (pid, port, _),
        attacker(partial(by_silence, port, pid, MOST_OPEN)) as twin,
    ):
        twin.hostile(range(TWIN))
    row.judge(Case("clients that never end", found, _red(twin), "limits of time and number"))
