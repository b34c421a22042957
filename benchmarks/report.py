"""What one run of the serving benchmark found: measurements, and what is said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.rounds import Figures, Results

TANDEM, ONE_BY_ONE = "Tandem", "Tandem without batches"
FLOOR = "its servers' floor: uvicorn, grpc.aio and the run"
DEVICE, BINARY, JSON, GRPC, JPEG = "device, tensor bytes", "OIP binary", "OIP JSON", "gRPC", "device, JPEG"


@dataclass(frozen=True)
class Target:
    """One aim: what it is about, what it says, and what was measured; `met` is None where nothing was."""

    what: str
    aim: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return {True: "met", False: "**missed**", None: "not measured"}[self.met]


@dataclass(frozen=True)
class Peer:
    """A way of a peer: its system's name, the way's name and kind."""

    system: str
    way: str
    kind: str


@dataclass(frozen=True)
class Hop:
    """An escalation's way: how it went, what it carried, and its time without queue and model."""

    what: str
    payload_bytes: int
    p50_us: float
    p99_us: float


@dataclass
class Report:
    """All that the page's section is made of.

    `peaks` are bytes and `ready_s` seconds, by model and system; `raw` the raw loop's medians by model;
    `missing` says by peer why it is not there; `stages` are milliseconds of a JPEG's request; `told` are
    paragraphs about how it was measured.
    """

    results: Results
    peers: Sequence[Peer] = ()
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)
    ready_s: dict[tuple[str, str], float] = field(default_factory=dict)
    raw: dict[str, Figures] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    hops: Sequence[Hop] = ()
    targets: Sequence[Target] = ()
    told: list[str] = field(default_factory=list)

    def hop_us(self, what: str, payload_bytes: int) -> float:
        """The median of that hop in microseconds; NaN where it was not measured."""
        found = (hop.p50_us for hop in self.hops if (hop.what, hop.payload_bytes) == (what, payload_bytes))
        return next(found, math.nan)
