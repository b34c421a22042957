"""The serving section of the page: what was measured as Markdown tables."""

import math
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.report import BINARY, DEVICE, FLOOR, GRPC, JPEG, JSON, ONE_BY_ONE, TANDEM, Report, Target
from benchmarks.rounds import OPEN, Cell

_MODELS = {"tiny": "tiny FP32", "tiny-int8": "tiny INT8", "mid": "mid FP32", "mid-int8": "mid INT8"}
_MANY = 32


def section(report: Report) -> str:
    """The section as Markdown."""
    parts = ["## Serving", *report.told, _table(_systems(report)), *_failures(report)]
    parts += ["### Tandem against the raw loop", _RATIOS, _table(_ratios(report))]
    if any(cell.clients == OPEN for cell in report.results.runs):
        parts += ["### At a steady load", _OPEN, _table(_open(report))]
    if report.stages:
        parts += ["### JPEG in, label out", _STAGES, _table(_stages(report))]
    if report.hops:
        parts += ["### The escalation hop", _HOPS, _table(_hops(report))]
    if report.targets:
        met = sum(target.met is True for target in report.targets)
        parts += ["### Aims", f"{met} of {len(report.targets)} met.", _table(_aims(report.targets))]
    return "\n\n".join(parts)


_RATIOS = (
    "Throughput as a share of the raw loop's with the same file, which ran right before each measurement; "
    "what the median takes longer than a raw run; and p99 as a multiple of an ideal first-come-first-served "
    "queue, in which each of N clients waits for N runs of the model and nothing else (N / raw throughput)."
)
_OPEN = (
    "Requests that come independently (Poisson) at 0.7 of the raw loop's throughput, whether or not earlier "
    "ones have been answered; latencies count from when each was due."
)
_STAGES = "Milliseconds of one request at 1 client, by the answers' own `timings_ms`; medians."
_HOPS = (
    "From the edge's client to the cloud service and back on loopback, without the time that the cloud "
    "reports for queue and model."
)


def _table(rows: Iterator[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def _number(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def _systems(report: Report) -> Iterator[Sequence[str]]:
    """Raw, Tandem's ways and the peers' in the columns that all have."""
    results = report.results
    yield (
        "", "tiny: p50 us at 1", "p99 us at 1", "tiny: req/s at 1", "at 8",
        "mid: req/s at 1", "at 8", "p99 ms at 8", "peak MB", "ready s",
    )  # fmt: skip
    if raw := report.raw.get("tiny"):
        mid = report.raw.get("mid")
        yield (
            "raw ONNX Runtime, one thread", _number(raw.p50_us), "", _number(raw.per_s), "",
            _number(mid.per_s if mid else math.nan), "", "", "", "",
        )  # fmt: skip
    for system, way in _rows(report):
        if system in report.missing:
            yield (system, report.missing[system], *[""] * 8)
            continue
        tiny, mid_one = Cell("tiny", system, way, 1), Cell("mid", system, way, 1)
        tiny_many, mid_many = Cell("tiny", system, way, 8), Cell("mid", system, way, 8)
        yield (
            f"{system}, {way}",
            _number(results.median(tiny, lambda f: f.p50_us)),
            _number(results.median(tiny, lambda f: f.p99_us)),
            _number(results.per_s(tiny)),
            _number(results.per_s(tiny_many)),
            _number(results.per_s(mid_one)),
            _number(results.per_s(mid_many)),
            _number(results.median(mid_many, lambda f: f.p99_us) / 1000),
            _number(report.peaks.get(("tiny", system), math.nan) / 1e6),
            _number(report.ready_s.get(("tiny", system), math.nan), 2),
        )


def _rows(report: Report) -> list[tuple[str, str]]:
    own = [*((TANDEM, way) for way in (DEVICE, BINARY, JSON, GRPC)), (ONE_BY_ONE, BINARY)]
    own += [(FLOOR, way) for way in (BINARY, GRPC)]
    theirs = [(peer.system, peer.way) for peer in report.peers]
    return [*own, *theirs, *((name, "") for name in report.missing)]


def _failures(report: Report) -> list[str]:
    lines = [
        f"* {cell.system}, {cell.way}, {cell.model}, {_asked(cell.clients)}: {why}"
        for cell, why in report.results.failures.items()
    ]
    return ["Not measured, because it failed:\n\n" + "\n".join(lines)] if lines else []


def _asked(clients: int) -> str:
    return "at a steady load" if clients == OPEN else f"{clients} client{'' if clients == 1 else 's'}"


def _ratios(report: Report) -> Iterator[Sequence[str]]:
    results = report.results
    yield (
        "",
        "raw/s",
        "us over raw at 1",
        "of raw at 1",
        "of raw at 8",
        "of raw at 32",
        "p99 / ideal at 8",
        "at 32",
    )
    for model, title in _MODELS.items():
        for way in (DEVICE, BINARY, JSON, GRPC):
            one, some, many = (Cell(model, TANDEM, way, clients) for clients in (1, 8, _MANY))
            if not any(cell in results.runs for cell in (one, some, many)):
                continue
            yield (
                f"{title}, {way}",
                _number(raw.per_s if (raw := report.raw.get(model)) else math.nan),
                _number(results.median(one, lambda f: f.over_us)),
                *(_number(results.median(cell, lambda f: f.share), 2) for cell in (one, some, many)),
                _number(results.median(some, lambda f: f.queue(8)), 2),
                _number(results.median(many, lambda f: f.queue(_MANY)), 2),
            )


def _open(report: Report) -> Iterator[Sequence[str]]:
    yield "", "req/s", "p50 us", "p99 us", "raw p50 us"
    for model, title in _MODELS.items():
        for way in (DEVICE, BINARY):
            cell = Cell(model, TANDEM, way, OPEN)
            if cell in report.results.runs:
                columns = (
                    report.results.median(cell, of)
                    for of in (
                        lambda f: f.per_s, lambda f: f.p50_us, lambda f: f.p99_us, lambda f: f.raw_p50_us,
                    )
                )  # fmt: skip
                yield f"{title}, {way}", *map(_number, columns)


def _stages(report: Report) -> Iterator[Sequence[str]]:
    yield "stage", "ms"
    yield from ((name, _number(value, 3)) for name, value in report.stages.items())
    for clients in (1, 8):
        per_s = report.results.per_s(Cell("cifar10", TANDEM, JPEG, clients))
        yield f"answers per second at {clients}", _number(per_s)


def _hops(report: Report) -> Iterator[Sequence[str]]:
    yield "", "kB", "p50 us", "p99 us"
    for hop in report.hops:
        yield hop.what, f"{hop.payload_bytes / 1000:g}", _number(hop.p50_us), _number(hop.p99_us)


def _aims(targets: Sequence[Target]) -> Iterator[Sequence[str]]:
    yield "", "aim", "measured", ""
    for target in targets:
        yield target.what, target.aim, target.measured, target.verdict


def stages(timings: Mapping[str, float], total_us: float, decoding_ms: float) -> dict[str, float]:
    """One request's milliseconds by stage, from `timings_ms`; what these do not explain is the rest.

    Where they do not tell decoding apart, `decoding_ms`, measured by itself, is taken out of preprocessing.
    """
    preprocess, edge = timings.get("preprocess", math.nan), timings.get("edge", math.nan)
    decode = timings.get("decode")
    told = {"decode": decode} if decode is not None else {"decode (measured by itself)": decoding_ms}
    own = preprocess if decode is not None else preprocess - decoding_ms
    known = sum(told.values()) + own + edge
    total = total_us / 1000
    return {
        **told,
        "preprocess": own,
        "inference": edge,
        "rest, loopback and client included": total - known,
        "all": total,
    }
