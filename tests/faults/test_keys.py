"""Devices without a key that opens, at the edge's door: none gets in, and no key gets more than its rate."""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from tests.bundles import SURE, picture, write_bundle
from tests.faults.plain_client import MODEL_INFER, Call, message
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.device import Device
from tests.joint.services import Services, eventually
from toolchain.authority import write_private

IMAGE = picture(SURE)
TIMEOUT_S = 5.0
OK = "OK"
STATUSES = {200: OK, 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}
BURST, A_SECOND = 4, 2
# A device's name in the file, and what else its entry says.
KEYS = {
    "camera": "",
    "neighbour": "",
    "stolen": "",
    "elsewhere": 'models = ["shapes"]',
    "greedy": f"rate = {A_SECOND}\nburst = {BURST}",
}


class Door:
    """An edge's ports for devices."""

    def __init__(self, ports: tuple[int, int, int]) -> None:
        self._device = Device(ports[0])
        self._port = ports[1]

    def by_rest(self, key: str) -> str:
        """What becomes of a request with this key, in gRPC's words."""
        headers = {"Content-Type": "image/png"} | ({"X-API-Key": key} if key else {})
        status, answered, _ = self._device.post("/v1/models/colors/predict", IMAGE, headers)
        if status == 429 and "Retry-After" not in answered:
            return "429 without Retry-After"
        return STATUSES.get(status, str(status))

    def by_grpc(self, key: str) -> str:
        """The same by gRPC."""
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            call: Call = channel.unary_unary(MODEL_INFER)
            try:
                call(message(), TIMEOUT_S, (("authorization", f"Bearer {key}"),) if key else None)
            except grpc.RpcError as error:
                return str(error.code().name)
        return OK


class House:
    """An edge that asks for keys, one that does not, and who has which key."""

    def __init__(self, services: Services, folder: Path) -> None:
        bundle = write_bundle(folder / "colors")
        self.keys = {name: secrets.token_urlsafe(32) for name in KEYS}
        self._file = folder / "devices.toml"
        self._write(KEYS)
        edges = (
            services.edge(bundle, name="keyed", api_keys=self._file),
            services.edge(bundle, name="open"),
        )
        self.keyed, self.open = (Door(edge.wait_ready().ports) for edge in edges)
        for name in ("camera", "stolen"):
            key = self.keys[name]
            assert (self.keyed.by_rest(key), self.keyed.by_grpc(key)) == (OK, OK), "a device is welcome"

    def _write(self, entries: Mapping[str, str]) -> None:
        lines = (
            f'[[keys]]\nname = "{name}"\nsha256 = "{self.digest(name)}"\n{more}\n'
            for name, more in entries.items()
        )
        write_private(self._file, "".join(lines).encode())

    def digest(self, name: str) -> str:
        """What the file has of a device's key."""
        return hashlib.sha256(self.keys[name].encode()).hexdigest()

    def without(self, name: str) -> str:
        """A device's key, which is no longer in the file."""
        self._write({other: more for other, more in KEYS.items() if other != name})
        key = self.keys[name]
        eventually(lambda: self.keyed.by_rest(key) != OK, 5, "the file without the key is in use")
        return key


STRANGERS: dict[str, tuple[Callable[[House], str], str]] = {
    "none": (lambda _: "", "UNAUTHENTICATED"),
    "wrong": (lambda _: secrets.token_urlsafe(32), "UNAUTHENTICATED"),
    "cut off": (lambda house: house.keys["camera"][:-1], "UNAUTHENTICATED"),
    "the stored hash of one": (lambda house: house.digest("camera"), "UNAUTHENTICATED"),
    "taken out of the file": (lambda house: house.without("stolen"), "UNAUTHENTICATED"),
    "of another model": (lambda house: house.keys["elsewhere"], "PERMISSION_DENIED"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with Services(folder) as services:
        yield House(services, folder)


@pytest.mark.parametrize("name", STRANGERS)
def test_key(name: str, house: House, row: Row) -> None:
    key, expected = STRANGERS[name]
    shown, turns = key(house), row.count(5, 200)

    def came(door: Door) -> Finding:
        outcomes = [come(shown) for come in (door.by_rest, door.by_grpc) for _ in range(turns)]
        wrong = [outcome for outcome in outcomes if outcome != expected]
        said = f", {wrong[0]} for one" if wrong and set(wrong) != {OK} else ""
        return Finding(len(outcomes), len(wrong), f"{outcomes.count(OK)} got in{said}")

    row.judge(Case(f"API key: {name}", came(house.keyed), came(house.open), "keys"))


def test_key_over_its_rate(house: House, row: Row) -> None:
    turns = row.count(20, 2000)

    def ask(door: Door) -> Finding:
        started = time.monotonic()
        came = [
            (come(house.keys["greedy"]), come(house.keys["neighbour"]))
            for come in (door.by_rest, door.by_grpc)
            for _ in range(turns)
        ]
        seconds = time.monotonic() - started
        greedy, neighbour = zip(*came, strict=True)
        granted = BURST + int(seconds * A_SECOND)
        admitted, others = greedy.count(OK), set(greedy) - {OK, "RESOURCE_EXHAUSTED"}
        refused = len(neighbour) - neighbour.count(OK)
        figure = f"{admitted} of {len(greedy)} admitted in {seconds:.1f} s, at most {granted} are its due"
        broken = [f"the neighbour was refused {refused} times"] if refused else []
        if others:
            broken.append(f"refused with {min(others)}")
        return Finding(len(greedy), max(0, admitted - granted), figure, tuple(broken))

    row.judge(Case("API key: over its rate", ask(house.keyed), ask(house.open), "keys"))
