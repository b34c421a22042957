"""What serving is meant to reach, each aim held against what was measured: met, missed, or not measured."""

import math
from collections.abc import Iterator, Sequence

from benchmarks.hop import OURS
from benchmarks.report import (
    BINARY,
    DEVICE,
    GRPC,
    JPEG,
    JSON,
    ONE_BY_ONE,
    TANDEM,
    Peer,
    Report,
    Target,
)
from benchmarks.rounds import Cell, Figures, Results

_QUEUE = 1.4


def at_least(what: str, value: float, limit: float, unit: str = "") -> Target:
    """Met by a `value` of `limit` or more."""
    return Target(what, f"at least {limit:,g}{unit}", *_judged(value, value >= limit, unit))


def at_most(what: str, value: float, limit: float, unit: str = "") -> Target:
    """Met by a `value` of `limit` or less."""
    return Target(what, f"at most {limit:,g}{unit}", *_judged(value, value <= limit, unit))


def _judged(value: float, met: bool, unit: str) -> tuple[str, bool | None]:
    if math.isnan(value):
        return "nothing", None
    digits = ".2f" if abs(value) < 100 else ",.0f"
    return f"{value:{digits}}{unit}", met


def evaluate(report: Report) -> Iterator[Target]:
    """Every aim in order."""
    results = report.results

    def share(model: str, way: str, clients: int, system: str = TANDEM) -> float:
        return results.median(Cell(model, system, way, clients), lambda figures: figures.share)

    for way in (BINARY, DEVICE):
        yield at_least(f"mid, {way}, 8 clients, share of raw FP32", share("mid", way, 8), 0.95)
        yield at_least(f"mid INT8, {way}, 8 clients, share of raw INT8", share("mid-int8", way, 8), 0.87)
    over = results.median(Cell("tiny", TANDEM, BINARY, 1), lambda figures: figures.over_us)
    yield at_most("tiny, OIP binary, 1 client, p50 over raw", over, 100, " us")
    what = "tiny, OIP binary, 8 clients, share of raw"
    yield at_least(f"{what}, without batches", share("tiny", BINARY, 8, ONE_BY_ONE), 0.80)
    yield at_least(f"{what}, as it comes: batches where they pay", share("tiny", BINARY, 8), 0.97)
    yield at_least("mid, OIP JSON, 8 clients, share of raw", share("mid", JSON, 8), 0.60)
    for way in (BINARY, DEVICE):
        yield _fair(results, way)
    yield from _grpc(results, report.peers, share("mid", GRPC, 8))
    tiny = ("tiny", TANDEM)
    yield at_most("tiny, peak memory", report.peaks.get(tiny, math.nan) / 1e6, 155, " MB")
    yield at_most("tiny, ready", report.ready_s.get(tiny, math.nan), 1, " s")
    jpeg = max((results.per_s(Cell("cifar10", TANDEM, JPEG, n)) for n in (1, 8)), key=_known)
    yield at_least("CIFAR-10, JPEG in and label out, one core", jpeg, 2500, "/s")
    yield from _ahead(report)
    for size, limit in ((3_000, 150.0), (150_000, 180.0)):
        what = f"escalation hop, {size // 1000} kB, p50 without the model"
        yield at_most(what, report.hop_us(OURS, size), limit, " us")


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _fair(results: Results, way: str) -> Target:
    cell = Cell("mid", TANDEM, way, 32)

    def queue(figures: Figures) -> float:
        return figures.queue(cell.clients)

    tail, share = results.median(cell, queue), results.median(cell, lambda figures: figures.share)
    what = f"mid, {way}, 32 clients: p99 against an ideal queue, and share of raw"
    aim = f"at most {_QUEUE} times, and at least 0.95"
    if math.isnan(tail):
        return Target(what, aim, "nothing", None)
    return Target(what, aim, f"{tail:.2f} times, {share:.2f}", tail <= _QUEUE and share >= 0.95)


def _grpc(results: Results, peers: Sequence[Peer], share: float) -> Iterator[Target]:
    for clients in (1, 8):
        theirs = [
            results.per_s(Cell("tiny", peer.system, peer.way, clients))
            for peer in peers
            if peer.kind == "grpc"
        ]
        best = max(theirs, key=_known, default=math.nan)
        own = results.per_s(Cell("tiny", TANDEM, GRPC, clients))
        what = f"tiny, gRPC, {_clients(clients)}, against the fastest peer's gRPC"
        yield at_least(what, own / best, 1.4, " times")
    yield at_least("mid, gRPC, 8 clients, share of raw", share, 0.85)


def _clients(count: int) -> str:
    return f"{count} client{'' if count == 1 else 's'}"


def _ahead(report: Report) -> Iterator[Target]:
    """Ahead of every peer: like against like (JSON, binary, gRPC) in every column that both have."""
    compared = [one for peer in report.peers for one in _compared(report, peer)]
    behind = [said for said, is_ahead in compared if not is_ahead]
    measured = "; ".join([f"ahead in {len(compared) - len(behind)} of {len(compared)}", *behind])
    yield Target(
        "against every peer, like against like, in every column",
        "ahead",
        measured,
        not behind if compared else None,
    )
    for clients in (1, 8):
        cells = [Cell("tiny", peer.system, peer.way, clients) for peer in report.peers]
        best = max((report.results.per_s(cell) for cell in cells), key=_known, default=math.nan)
        own = (
            report.results.per_s(Cell("tiny", TANDEM, way, clients)) for way in (DEVICE, BINARY, JSON, GRPC)
        )
        what = f"tiny, {_clients(clients)}, best way against the best peer"
        yield at_least(what, max(own, key=_known) / best, 2, " times")


_LIKE = {"binary": (BINARY, DEVICE), "json": (JSON,), "grpc": (GRPC,)}


def _compared(report: Report, peer: Peer) -> Iterator[tuple[str, bool]]:
    """Each column of one peer that Tandem has too: both figures in words, and whether Tandem is ahead."""
    columns = {
        "req/s": lambda figures: figures.per_s,
        "p50 us": lambda figures: -figures.p50_us,
        "p99 us": lambda figures: -figures.p99_us,
    }
    for model in ("tiny", "mid"):
        for clients in (1, 8):
            theirs = Cell(model, peer.system, peer.way, clients)
            for way in _LIKE[peer.kind]:
                ours = Cell(model, TANDEM, way, clients)
                if ours in report.results.failures:
                    yield f"{model}, {way}, at {clients}: failed", False
                for column, of in columns.items():
                    own = report.results.median(ours, of)
                    other = report.results.median(theirs, of)
                    if not math.isnan(own) and not math.isnan(other):
                        said = f"{column} of {model}, {way}, at {clients}: {abs(own):,.0f}"
                        yield f"{said} ({peer.system} {abs(other):,.0f})", own > other
    own_peak, peak = (report.peaks.get(("tiny", name)) for name in (TANDEM, peer.system))
    if own_peak and peak:
        yield f"peak MB: {own_peak / 1e6:.0f} ({peer.system} {peak / 1e6:.0f})", own_peak < peak
