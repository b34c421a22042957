"""Where services listen: every kind of address answers, over both transports."""

import socket
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest

from inference_core.listening import family_of
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import write_bundle
from tests.joint.services import Service, Services, eventually


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", socket.AF_INET), ("localhost", socket.AF_INET), ("::", socket.AF_INET6)],
)
def test_families(host: str, family: socket.AddressFamily) -> None:
    assert family_of(host) is family


def says_ready(service: Service) -> bool:
    return ": ready: " in service.log


def live(service: Service, host: str) -> bool:
    """Whether all three ports answer at this address."""
    http, rpc, metrics = service.ports
    for port, path in ((http, "/readyz"), (metrics, "/metrics")):
        with urlopen(f"http://{host}:{port}{path}") as answer:
            assert answer.status == 200
    with grpc.insecure_channel(f"{host}:{rpc}") as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        return bool(stub.ServerLive(oip.ServerLiveRequest(), timeout=5).live)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_both_services_listen_by_ipv6(services: Services, tmp_path: Path, host: str) -> None:
    bundle = write_bundle(tmp_path / "colors")
    by_host: dict[str, Any] = {"host": host, "metrics_host": host, "insecure": True}
    cloud = services.cloud(bundle, **by_host)
    reach = f"[::1]:{cloud.ports[1]}"
    edge = services.edge(bundle, reach, **by_host)
    for service in (cloud, edge):
        eventually(partial(says_ready, service), 30, f"{service.name} is ready")
        assert live(service, "[::1]")
        assert host == "::1" or live(service, "127.0.0.1")
    eventually(lambda: f"connected to the cloud at {reach}" in edge.log, 10, "the edge is connected")
