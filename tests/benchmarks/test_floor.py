"""The libraries under Tandem, with a model and nothing else."""

from pathlib import Path

from benchmarks import ways
from benchmarks.load import closed_loop
from benchmarks.models import build
from benchmarks.processes import Cores
from benchmarks.systems import floor


def test_it_answers_both_ways_as_the_model_does(tmp_path: Path) -> None:
    model = build("tiny", tmp_path)["fp32"]
    asked = [ways.oip_binary(model), ways.grpc_infer(model)]
    server = floor("floor", model, asked, Cores.of_this_machine().server, tmp_path / "log")
    try:
        for way in asked:
            with server.turn():
                run = closed_loop(way.at(server.port(way)), way.check, clients=2, seconds=0.2)
            assert (run.errors, run.examples) == (0, {})
            assert run.latencies_ns
    finally:
        server.stop()
