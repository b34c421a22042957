"""More strangers than there is room for: whoever has something to ask gets in all the same."""

import hashlib
import http.client
import json
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from math import prod
from pathlib import Path

import pytest

from tests.bundles import SURE, picture, write_bundle
from tests.joint.device import Device
from tests.joint.services import Service, Services, eventually, get, get_json
from toolchain.authority import write_private

FILES = 400
MANY = 600
PREDICT = "/v1/models/colors/predict"
PNG = {"Content-Type": "image/png"}


@contextmanager
def silent(port: int, count: int) -> Iterator[None]:
    """So many connections that say nothing."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        yield


def displaced(service: Service) -> float:
    return service.metrics().total("tandem_http_connections_displaced_total")


def test_strangers_who_are_answered_that_they_need_a_key_keep_nobody_out(
    services: Services, tmp_path: Path
) -> None:
    key = secrets.token_urlsafe(32)
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(key.encode()).hexdigest()
    write_private(keys, f'[[keys]]\nname = "camera"\nsha256 = "{digest}"\n'.encode())
    bundle = write_bundle(tmp_path / "colors")
    edge = services.edge(bundle, api_keys=keys, max_connections=4).wait_ready()
    port = edge.ports[0]

    def ask(connection: http.client.HTTPConnection, **headers: str) -> int:
        connection.request("POST", PREDICT, picture(SURE), PNG | headers)
        response = connection.getresponse()
        response.read()
        return response.status

    with ExitStack() as stack:

        def connection() -> http.client.HTTPConnection:
            return stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)))

        known = connection()
        assert ask(known, **{"X-API-Key": key}) == 200
        assert [ask(connection()) for _ in range(6)] == [401] * 6
        assert [ask(connection(), **{"X-API-Key": key}) for _ in range(3)] == [200] * 3
        assert edge.metrics().total("tandem_http_connections") == 4
        assert displaced(edge) >= 6
        assert get(port, "/healthz")[0] == 503, "all are taken by devices that have been served"
        assert ask(known, **{"X-API-Key": key}) == 200
    eventually(lambda: "connections: more than 4, that is the limit" in edge.log, 5, "the log says so")


def test_a_cloud_without_certificates_keeps_whom_it_has_served(services: Services, tmp_path: Path) -> None:
    cloud = services.cloud(write_bundle(tmp_path / "colors"), max_connections=5).wait_ready()
    spec = get_json(cloud.ports[0], "/v2/models/colors")["inputs"][0]
    shape = [1, *spec["shape"][1:]]
    inputs = [{**spec, "shape": shape, "data": [0.5] * prod(shape)}]
    with closing(http.client.HTTPConnection("127.0.0.1", cloud.ports[0], timeout=5)) as device:

        def ask() -> int:
            device.request("POST", "/v2/models/colors/infer", json.dumps({"inputs": inputs}))
            response = device.getresponse()
            response.read()
            return response.status

        assert ask() == 200
        first = device.sock
        with silent(cloud.ports[0], 10):
            assert get(cloud.ports[0], "/healthz")[0] == 200
            assert ask() == 200
        assert device.sock is first, "on the same connection"


@pytest.mark.parametrize("at", [0, 1], ids=["HTTP", "gRPC"])
def test_a_node_that_may_open_few_files_keeps_some_for_who_asks(
    services: Services, tmp_path: Path, at: int
) -> None:
    settings = {"bundles": write_bundle(tmp_path / "colors"), "cloud": ""}
    edge = services.start("edge_node", "edge", settings, ("tests.joint.few_files", str(FILES))).wait_ready()
    said = f"need 2256 open files, this process may have {FILES} (ulimit -n): it is taken as 72"
    assert f"EDGE_MAX_CONNECTIONS: 1000 connections of HTTP and as many of gRPC {said}" in edge.log
    with silent(edge.ports[at], MANY):
        for _ in range(5):
            assert Device(edge.ports[0]).predict(picture(SURE)).status == 200
    if at == 0:
        assert displaced(edge) >= MANY - 72


def test_the_limit_of_files_is_raised_where_it_may_be(services: Services, tmp_path: Path) -> None:
    settings = {"bundles": write_bundle(tmp_path / "colors"), "cloud": "", "max_connections": 700}
    launcher = ("tests.joint.few_files", f"{FILES}:{10 * FILES}")
    edge = services.start("edge_node", "edge", settings, launcher).wait_ready()
    limits = Path(f"/proc/{edge.process.pid}/limits").read_text()
    soft = next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(soft) == 256 + 2 * 700
    assert "ulimit" not in edge.log
