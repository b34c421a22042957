"""An edge with an outbox and a cloud with a sample store that are killed and started again, on one set of
files and ports; and what the devices were told, to be held against what is there in the end."""

import hashlib
import io
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bundles import SIDE, write_bundle
from tests.faults.panel import Panel
from tests.joint.canary import CANARY
from tests.joint.device import Answers, Load
from tests.joint.services import Service, Services, eventually, free_port, get_json

DRAINED_S = 120.0
DEADLINE_MS = 1000
EDGE, CLOUD = "edge_node", "cloud_service"


@dataclass
class Told:
    """What the devices know: the digest of each sample that was acknowledged, by its key; and the digests of
    those that were answered without being acknowledged."""

    kept: dict[str, str] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)


class Pictures:
    """Pictures of which no two are the same, and the digest of each."""

    def __init__(self, seed: int) -> None:
        self.digests: list[str] = []
        self._random = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            out = io.BytesIO()
            Image.fromarray(self._random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(out, "PNG")
            self.digests.append(digest(out.getvalue()))
            yield out.getvalue()


def digest(data: bytes) -> str:
    """What a sample is known by, wherever it lies."""
    return hashlib.sha256(data).hexdigest()


class Pair:
    """Both services, which survive each other's ends. `disk` is a kind of `tests.faults.shim`, for both."""

    def __init__(
        self, services: Services, folder: Path, name: str, *, disk: str = "", **edge: object
    ) -> None:
        self._services = services
        self._folder = folder / name
        self._folder.mkdir()
        self._name = name
        self._disk = disk
        self.bundle = write_bundle(self._folder / "colors")
        self._ports = {EDGE: free_port(), CLOUD: free_port()}
        self._settings: dict[str, dict[str, object]] = {
            EDGE: {
                "bundles": self.bundle,
                "http_port": self._ports[EDGE],
                "cloud": f"127.0.0.1:{self._ports[CLOUD]}",
                "mode": "edge",
                "outbox": self.file(EDGE),
                "outbox_share": 1,
                **edge,
            },
            CLOUD: {
                "bundles": self.bundle,
                "grpc_port": self._ports[CLOUD],
                "samples": self.file(CLOUD),
                "threads": 1,
            },
        }
        self.running: dict[str, Service] = {}
        self.told = Told()

    def panel(self, kind: str) -> Panel:
        """What decides which call of a service's disk fails."""
        return Panel(self._folder / f"{kind}.panel")

    def file(self, kind: str) -> Path:
        """The database of a service."""
        return self._folder / f"{kind}.db"

    def port(self, kind: str) -> int:
        """The edge's port for devices, the cloud's for edges."""
        return self._ports[kind]

    @property
    def digest(self) -> str:
        """The digest of the bundle, as the running edge tells it."""
        model = get_json(self.running[EDGE].ports[0], "/v1/models/colors")
        return str(model["digest"])

    def start(self, kinds: Sequence[str] = (EDGE, CLOUD)) -> float:
        """Start these and wait until they are ready; after how many seconds the last one was, less those in
        which the machine stood still."""
        started = time.monotonic()
        for kind in kinds:
            launcher: tuple[str, ...] = ()
            if self._disk:
                self.panel(kind)
                launcher = ("tests.faults.shim", str(self._folder / f"{kind}.panel"), self._disk)
            name = f"{self._name}_{kind}"
            self.running[kind] = self._services.start(kind, name, self._settings[kind], launcher)
        for kind in kinds:
            self.running[kind].wait_ready()
        ended = time.monotonic()
        return ended - started - CANARY.stalled_s(started, ended)

    def kill(self, kinds: Sequence[str]) -> None:
        """End these with SIGKILL. What shared memory they leave behind is no file of a disk."""
        for kind in kinds:
            self.running[kind].kill()
            Path(f"{self.file(kind)}-shm").unlink(missing_ok=True)

    def load(self, pictures: Pictures, rate: float, *, keep: bool) -> Load:
        """Devices, with pictures that are worth keeping, that want to be told or not."""
        query = {"keep": "true"} if keep else {}
        return Load(self._ports[EDGE], iter(pictures), rate=rate, deadline_ms=DEADLINE_MS, **query)

    def note(self, answers: Answers, pictures: Pictures) -> None:
        """Remember what the devices were told."""
        for answer in answers:
            if answer.status == 200:
                known, key = pictures.digests[answer.number], answer.body["kept"]
                if key is None:
                    self.told.answered.add(known)
                else:
                    self.told.kept[key] = known

    def drain(self) -> bool:
        """Whether everything that the edge has goes to the cloud; then both are stopped."""
        edge = self.running[EDGE]
        try:
            eventually(
                lambda: edge.metrics().total("tandem_outbox_depth") == 0, DRAINED_S, "all is forwarded"
            )
        finally:
            for service in self.running.values():
                service.stop()
        return True

    def stored(self) -> tuple[dict[str, str], Counter[str]]:
        """What the cloud has: the digest of each sample by its key, and how often it has each digest."""
        with closing(sqlite3.connect(self.file(CLOUD))) as connection:
            rows = connection.execute("SELECT key, data FROM samples JOIN tensors ON sample = number")
            by_key = {key: digest(data) for key, data in rows}
        return by_key, Counter(by_key.values())
