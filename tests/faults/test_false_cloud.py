"""A false cloud in the place of the edge's: it hears no input, and every device has its answer in time."""

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from inference_core.tensors import to_response
from protos import open_inference_pb2 as oip
from tests.bundles import UNSURE, picture, write_bundle
from tests.certificates import DAY, PAST, Site, edge_settings
from tests.faults.contexts import OLD, careless, only, serving
from tests.faults.relay import Relay
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.device import Answers, Device, Load
from tests.joint.fake_cloud import FakeCloud
from tests.joint.services import Service, Services, eventually, free_port
from toolchain.authority import now

DEADLINE_MS = 500
GRACE_MS = 20.0
RATE = 30.0
IMAGE = picture(UNSURE)


def _answer(request: oip.ModelInferRequest) -> bytes:
    outputs = {"logits": np.array([[0, 9, 0]], np.float32)}
    return to_response(request.model_name, request.model_version, outputs, {}, request.id).SerializeToString()


FALSE: dict[str, Callable[[Site], ssl.SSLContext | None]] = {
    "clear text": lambda _: None,
    "wrong authority": lambda site: serving(Site(site.folder / "other").cloud()),
    "expired": lambda site: serving(site.cloud("expired", at=PAST)),
    "not yet valid": lambda site: serving(site.cloud("future", at=now() + DAY)),
    "wrong name": lambda site: serving(site.cloud("named", "cloud.example")),
    "a node's certificate": lambda site: serving(site.edge("edge-2")),
    "old protocol": lambda site: only(serving(site.cloud()), OLD),
}


@dataclass(frozen=True)
class Believer:
    """An edge, and the port where it looks for its cloud: by itself, or through one who checks nothing."""

    edge: Service
    port: int
    careless: bool

    def meet(self, false: FakeCloud, serves: ssl.SSLContext | None, seconds: float) -> tuple[Answers, int]:
        """What its devices are told while a false cloud stands there, and how often it came to the door."""
        door = free_port() if self.careless else self.port
        with Relay(door, false.port, serves, None) as relay:
            if not self.careless:
                return self._ask(lambda: relay.accepted > 0, seconds), relay.accepted
            with Relay(self.port, door, None, None if serves is None else careless()):
                return self._ask(lambda: bool(false.time_left_s), seconds), relay.accepted

    def _ask(self, arrived: Callable[[], bool], seconds: float) -> Answers:
        with Load(self.edge.ports[0], [IMAGE], rate=RATE, deadline_ms=DEADLINE_MS) as load:
            eventually(arrived, 10, "the edge comes to the door")
            load.go_on(seconds)
        return load.answers


def judged(met: tuple[Answers, int], heard: int) -> Finding:
    """How many inputs the false cloud heard, and how many answers were not the edge's own, in time."""
    answers, attempts = met
    bad = sum(
        a.status != 200 or a.source != "edge_fallback" or a.late_ms > GRACE_MS + a.stalled_ms for a in answers
    )
    broken = (f"{heard} inputs were heard",) if heard else ()
    return Finding(len(answers), bad, f"{heard} inputs heard at {attempts} connections", broken)


class Town:
    """An edge that looks for its cloud by mutual TLS, and one that goes through who checks nothing."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.site = Site(folder / "site")
        bundle = write_bundle(folder / "colors")
        ports = free_port(), free_port()
        shown = edge_settings(self.site.edge("edge-1"))
        careful = services.edge(bundle, f"localhost:{ports[0]}", "careful", **shown)
        careless = services.edge(bundle, ports[1], "careless")
        self.careful = Believer(careful.wait_ready(), ports[0], careless=False)
        self.careless = Believer(careless.wait_ready(), ports[1], careless=True)
        with (
            FakeCloud(_answer) as cloud,
            Relay(ports[0], cloud.port, serving(self.site.cloud()), None),
        ):
            device = Device(careful.ports[0])
            eventually(
                lambda: device.predict(IMAGE, deadline_ms=DEADLINE_MS).source == "cloud",
                10,
                "the true cloud is believed",
            )


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    with Services(folder) as services:
        yield Town(services, folder)


@pytest.mark.parametrize("name", FALSE)
def test_false_cloud(name: str, town: Town, row: Row) -> None:
    seconds = row.count(1, 30)

    def met(believer: Believer) -> Finding:
        with FakeCloud(_answer) as false:
            met = believer.meet(false, FALSE[name](town.site), seconds)
            return judged(met, len(false.time_left_s))

    found, twin = met(town.careful), met(town.careless)
    row.judge(Case(f"TLS: false cloud, {name}", found, twin, "a look at its certificate"))
