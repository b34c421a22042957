"""The aims: met or missed by the figures that are given, never by none."""

import math

import pytest

from benchmarks.hop import OURS
from benchmarks.report import BINARY, DEVICE, GRPC, JPEG, JSON, ONE_BY_ONE, TANDEM, Hop, Peer, Report, Target
from benchmarks.rounds import Cell, Figures, Results
from benchmarks.targets import evaluate

RAW = {"tiny": 5000.0, "mid": 250.0, "mid-int8": 500.0, "cifar10": 4000.0}
FAIR = "p99 against an ideal queue, and share of raw"
PEER = Peer("Other", "gRPC", "grpc")


def report(shares: dict[str, float] | None = None, **changes: float) -> Report:
    """One in which all aims are reached; `shares` of raw by way, `changes` of single figures."""
    results = Results()
    given = dict.fromkeys((DEVICE, BINARY, GRPC), 0.98) | {JSON: 0.7} | (shares or {})
    for model, raw in RAW.items():
        for way, share in given.items():
            for clients in (1, 8, 32):
                p50 = 1e6 / raw + changes.get("over", 50.0)
                queue = changes.get("queue", 1.1) * clients / raw * 1e6
                figures = Figures(share * raw, p50, queue, raw, 1e6 / raw)
                for system in (TANDEM, ONE_BY_ONE) if model == "tiny" else (TANDEM,):
                    results.add(Cell(model, system, way, clients), figures)
    for model in ("tiny", "mid"):
        for clients in (1, 8):
            theirs = RAW[model] * changes.get("peer", 0.4)
            results.add(Cell(model, PEER.system, PEER.way, clients), Figures(theirs, 1e9, 1e9, 1, 1))
    results.add(Cell("cifar10", TANDEM, JPEG, 8), Figures(changes.get("jpeg", 2600), 1, 1, 1, 1))
    peaks = {("tiny", TANDEM): int(changes.get("peak", 120e6)), ("tiny", PEER.system): int(300e6)}
    hops = [Hop(OURS, 3000, changes.get("hop", 149), 0), Hop(OURS, 150_000, 170, 0)]
    ready = {("tiny", TANDEM): changes.get("ready", 0.8)}
    return Report(results, [PEER], peaks, ready, hops=hops)


def missed(report: Report) -> set[str]:
    return {target.what for target in evaluate(report) if target.met is not True}


def test_all_can_be_met() -> None:
    targets = list(evaluate(report()))
    assert not [target for target in targets if target.met is not True]
    assert len(targets) == 21
    assert len({target.what for target in targets}) == 21


@pytest.mark.parametrize(
    ("shares", "changes", "what"),
    [
        ({JSON: 0.59}, {}, {"mid, OIP JSON, 8 clients, share of raw"}),
        ({}, {"over": 101.0}, {"tiny, OIP binary, 1 client, p50 over raw"}),
        ({}, {"jpeg": 2499}, {"CIFAR-10, JPEG in and label out, one core"}),
        ({}, {"hop": 151}, {"escalation hop, 3 kB, p50 without the model"}),
        ({}, {"ready": 1.01}, {"tiny, ready"}),
        ({}, {"peak": 156e6}, {"tiny, peak memory"}),
        (
            {},
            {"queue": 1.41},
            {
                f"mid, {way}, 32 clients: p99 against an ideal queue, and share of raw"
                for way in (BINARY, DEVICE)
            },
        ),
        (
            {},
            {"peer": 0.6},
            {
                *(f"tiny, {n}, best way against the best peer" for n in ("1 client", "8 clients")),
            },
        ),
        (
            {DEVICE: 0.94},
            {},
            {
                f"mid, {DEVICE}, 8 clients, share of raw FP32",
                f"mid, {DEVICE}, 32 clients: {FAIR}",
            },
        ),
        ({GRPC: 0.84}, {}, {"mid, gRPC, 8 clients, share of raw"}),
    ],
)
def test_each_is_missed_by_its_own_figure(
    shares: dict[str, float], changes: dict[str, float], what: set[str]
) -> None:
    assert missed(report(shares, **changes)) == what


def test_a_peer_that_is_ahead_somewhere_is_named() -> None:
    given = report(peer=1.5)
    found = next(target for target in evaluate(given) if target.what.startswith("against every peer"))
    assert found.met is False
    assert "req/s of tiny, gRPC, at 1: 4,900 (Other 7,500)" in found.measured
    assert "p50" not in found.measured


def test_what_failed_is_not_ahead() -> None:
    given = report()
    cell = Cell("mid", TANDEM, GRPC, 8)
    del given.results.runs[cell]
    given.results.failures[cell] = "it broke"
    found = next(target for target in evaluate(given) if target.what.startswith("against every peer"))
    assert found.met is False
    assert "mid, gRPC, at 8: failed" in found.measured


def test_what_was_not_measured_is_not_met() -> None:
    for target in evaluate(Report(Results())):
        assert target.met is None, target
        assert target.verdict == "not measured"
    assert math.isnan(Report(Results()).hop_us(OURS, 3000))
    assert Target("a", "b", "c", met=False).verdict == "**missed**"
