"""How much the load generator can send: the same measurement of servers that do nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.http1 import HttpConnection, post
from benchmarks.http2 import GrpcConnection
from benchmarks.load import Dial, Reply, closed_loop
from benchmarks.noop import ANSWER
from benchmarks.processes import Failed
from benchmarks.systems import noop

_BODY = bytes(3136)  # as large as the small model's input


@dataclass(frozen=True)
class Ceiling:
    """Requests per second and the median, in microseconds, of one protocol (`http`, `grpc`)."""

    protocol: str
    clients: int
    per_s: float
    p50_us: float


def ceilings(core: int, logs: Path, seconds: float) -> Iterator[Ceiling]:
    """The most that can be measured, with the servers on `core`. Raises `Failed` for a wrong answer."""
    for protocol in ("http", "grpc"):
        with noop(protocol, core, logs / f"noop-{protocol}.log") as port:
            for clients in (1, 8):
                run = closed_loop(_dial(protocol, port), _check, clients=clients, seconds=seconds)
                if run.errors:
                    raise Failed(f"the server that does nothing: {run.examples}")
                yield Ceiling(protocol, clients, run.per_s, run.percentile_us(50))


def _dial(protocol: str, port: int) -> Dial:
    if protocol == "grpc":
        return partial(GrpcConnection, port, "/nothing", _BODY)
    return partial(HttpConnection, port, post("/", _BODY, "application/octet-stream"))


def _check(reply: Reply) -> str | None:
    return None if reply.body == ANSWER else f"{reply.body[:100]!r}"
