"""Servers under measurement: frozen while it is not their turn; what cannot be started is reported."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.http1 import HttpConnection, post
from benchmarks.models import Served
from benchmarks.networks import Graph
from benchmarks.processes import Cores, Failed, Process, free_port
from benchmarks.systems import RawLoop, Server
from benchmarks.ways import Judge, Way
from tests.benchmarks.server import GOOD, python

CORE = Cores.of_this_machine().server


def way(expected: bytes) -> Way:
    request = post("/", b"x", "text/plain")
    judge = Judge(repr(expected), bytes, repr)
    return Way("way", "binary", lambda port: HttpConnection(port, request), judge)


def test_a_frozen_server_answers_in_its_turn_only(tmp_path: Path) -> None:
    port = free_port()
    server = Server("good", Process(python(port, "good"), CORE, tmp_path / "log"), [way(GOOD)], port, 0)
    try:
        connection = HttpConnection(port, post("/", b"x", "text/plain"))
        connection.send()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert connection.advance() is None
        with server.turn():
            end = time.monotonic() + 30
            while (reply := connection.advance()) is None:
                assert time.monotonic() < end
        connection.close()
        assert reply.body == GOOD
        assert 0 < server.ready_s < 30
    finally:
        server.stop()


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "raise SystemExit('no such model')"], CORE, tmp_path / "log")
    with pytest.raises(Failed, match="ended with status 1: no such model"):
        Server("bad", process, [way(GOOD)], free_port(), 0)


def test_a_server_that_answers_wrongly_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.systems.START_S", 5.0)
    port = free_port()
    process = Process(python(port, "good"), CORE, tmp_path / "log")
    with pytest.raises(Failed, match=r"not ready within 5 s .*right is"):
        Server("bad", process, [way(b"better")], port, 0)
    assert process.popen.poll() is not None


def test_the_raw_loop_runs_the_file(tmp_path: Path) -> None:
    graph = Graph(2)
    sample = np.zeros((1, 2), np.float32)
    model = Served("net", "fp32", tmp_path, sample, sample)
    (tmp_path / "net.onnx").write_bytes(graph.finish(graph.linear(graph.input, 2)))
    model.__dict__["file"] = tmp_path / "net.onnx"
    raw = RawLoop(model, CORE, tmp_path)
    try:
        found = raw.measure(0.2)
    finally:
        raw.stop()
    assert found["per_s"] > 100
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert found["per_s"] * found["p50_us"] < 3e6
