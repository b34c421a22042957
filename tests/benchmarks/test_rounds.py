"""Rounds: medians over them, the ideal queue, and a system that fails is left out and said to be."""

import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from benchmarks.http1 import HttpConnection, post
from benchmarks.load import Reply, Run
from benchmarks.models import Served
from benchmarks.networks import Graph
from benchmarks.processes import Cores, Process, free_port
from benchmarks.rounds import OPEN, Cell, Entry, Figures, Part, Results, figures, ideal_us, play
from benchmarks.systems import RawLoop, Server
from benchmarks.ways import Judge, Way
from tests.benchmarks.server import GOOD, python

CELL = Cell("tiny", "one", "way", 8)
CORE = Cores.of_this_machine().server


def made(per_s: float, p50_us: float = 1.0, p99_us: float = 2.0, raw_per_s: float = 1000.0) -> Figures:
    return Figures(per_s, p50_us, p99_us, raw_per_s, 1e6 / raw_per_s)


def test_the_ideal_queue_is_what_a_queue_does() -> None:
    clients, service_us = 32, 4000.0
    now, taken = 0.0, []
    waiting = deque([0.0] * clients)
    for _ in range(1000):
        since = waiting.popleft()
        now += service_us
        taken.append(now - since)
        waiting.append(now)  # asks again at once
    assert max(taken) == pytest.approx(ideal_us(clients, 1e6 / service_us))
    assert taken[-1] == max(taken)


def test_medians_are_over_the_rounds_and_ratios_within_each() -> None:
    results = Results()
    for figures_ in (made(500, raw_per_s=1000), made(300, raw_per_s=400), made(900, raw_per_s=1000)):
        results.add(CELL, figures_)
    assert results.per_s(CELL) == 500
    assert results.median(CELL, lambda f: f.share) == 0.75
    assert math.isnan(results.per_s(Cell("tiny", "other", "way", 8)))
    assert made(1, p99_us=16_000, raw_per_s=1000).queue(8) == pytest.approx(2.0)
    assert made(1, p50_us=1500, raw_per_s=1000).over_us == pytest.approx(500)


def test_stages_are_read_from_outcomes() -> None:
    run = Run(1.0)
    for edge in (1, 5, 2):
        run.latencies_ns.append(1000)
        run.kept.append(Reply(True, "200", b"", b'{"timings_ms":{"edge":%d,"total":9}}' % edge))
    assert figures(run, {"per_s": 10, "p50_us": 5}).stages == {"edge": 2, "total": 9}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    graph = Graph(2)
    path = tmp_path / "net.onnx"
    path.write_bytes(graph.finish(graph.linear(graph.input, 2)))
    return path


def test_good_systems_are_measured_and_bad_ones_reported(tmp_path: Path, network: Path) -> None:
    sample = np.zeros((1, 2), np.float32)
    model = Served("net", "fp32", tmp_path, sample, sample)
    model.__dict__["file"] = network  # a cached property: there is no bundle here
    raw = RawLoop(model, CORE, tmp_path)
    servers = [start(tmp_path, behaviour) for behaviour in ("good", "wrong")]
    said: list[str] = []
    results = Results()
    try:
        part = Part(servers[0].ways[0], (1, 2, OPEN), 0.3, load=0.01)
        entries = [Entry(server, model, [part]) for server in servers]
        play(entries, {"net": raw}, 2, results, said.append)
    finally:
        for server in servers:
            server.stop()
        raw.stop()
    assert {cell: len(runs) for cell, runs in results.runs.items()} == {
        Cell("net", "good", "way", clients): 2 for clients in (1, 2, OPEN)
    }
    assert all(f.per_s > 0 and f.raw_per_s > 0 for runs in results.runs.values() for f in runs)
    bad = [Cell("net", "wrong", "way", clients) for clients in (1, 2, OPEN)]
    assert list(results.failures) == bad
    assert all("evil" in why for why in results.failures.values())
    assert len(said) == 2


def start(folder: Path, behaviour: str) -> Server:
    port = free_port()
    process = Process(python(port, behaviour, 0, 2), CORE, folder / f"{behaviour}.log")
    judge = Judge(repr(GOOD), bytes, repr)
    request = post("/", b"x", "text/plain")
    way = Way("way", "binary", lambda port: HttpConnection(port, request), judge)
    return Server(behaviour, process, [way], port, 0)
