"""Edge and cloud with certificates: strangers stay outside, nodes get in, and what is renewed is taken.

What becomes of requests while it is renewed, tests.faults.test_rotation knows.
"""

import asyncio
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge_node.cloud_tls import CloudTls
from edge_node.connection import Connection
from inference_core.certificate import Files
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import UNSURE, picture, write_bundle
from tests.certificates import DAY, PAST, Site, cloud_settings, edge_settings
from tests.joint.device import Device
from tests.joint.services import Service, Services, eventually, get
from toolchain.authority import now, write_private
from toolchain.keygen import Wanted, make

DEADLINE_MS = 1000
NAME = "cloud.example"
Asking = Callable[[dict[str, object]], Service]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def served(site: Site) -> Files:
    """What the cloud shows, which is not for the address of this machine."""
    return site.cloud("cloud", "localhost", NAME)


def start_edge(services: Services, bundle: Path, peer: str, settings: dict[str, object]) -> Service:
    return services.start("edge_node", "edge", {"bundles": bundle, "cloud": peer} | settings)


@pytest.fixture(scope="module")
def cloud(module_services: Services, bundle: Path, site: Site) -> Service:
    revoked = site.folder / "revoked"
    revoked.write_text("edge-lost  # stolen in May\n")
    settings = cloud_settings(served(site)) | {"revoked_nodes": revoked}
    settings |= {"bundles": bundle, "threads": 1}
    started = module_services.start("cloud_service", "cloud", settings)
    told(started, " ready: ")
    return started


@pytest.fixture
def asking(services: Services, bundle: Path, cloud: Service) -> Asking:
    """Starts an edge node that asks the cloud, with settings of TLS."""

    def start(settings: dict[str, object]) -> Service:
        return start_edge(services, bundle, f"localhost:{cloud.ports[1]}", settings)

    return start


def told(service: Service, words: str) -> None:
    eventually(lambda: words in service.log, 10, f"{service.name} says {words!r}")


@contextmanager
def dialled(port: int, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A connection that has shown and seen certificates; a server may take until the first read to refuse."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def outcome(edge: Service) -> tuple[str, str]:
    answer = Device(edge.ports[0]).predict(picture(UNSURE), deadline_ms=DEADLINE_MS)
    assert answer.status == 200
    return answer.who


def is_connected(edge: Service) -> bool:
    return edge.metrics().total("tandem_cloud_connected") == 1


def test_a_node_gets_in_by_the_name_to_expect_and_both_take_what_is_renewed(
    services: Services, bundle: Path, site: Site, cloud: Service
) -> None:
    settings = edge_settings(site.edge("edge-5")) | {"cloud_tls_name": NAME}
    edge = start_edge(services, bundle, f"127.0.0.1:{cloud.ports[1]}", settings).wait_ready()
    eventually(lambda: is_connected(edge), 5, "the edge is connected")
    assert outcome(edge) == ("cloud", "low_confidence")
    assert edge.metrics().total("tandem_certificate_expiry_timestamp_seconds", which="client") > 0
    before = shown_by(cloud.ports[0], site), shown_by(cloud.ports[1], site)
    served(site)
    site.edge("edge-5")
    for service in (cloud, edge):
        told(service, "changed and is in use")
    assert shown_by(cloud.ports[0], site) != before[0]
    assert shown_by(cloud.ports[1], site) != before[1]
    told(edge, "connected anew to the cloud")
    assert outcome(edge) == ("cloud", "low_confidence")


def shown_by(port: int, site: Site) -> bytes | None:
    """The certificate that a server shows now."""
    context = ssl.create_default_context(cafile=site.ca)
    files = site.edge("edge-1")
    context.load_cert_chain(str(files.certificate), files.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with dialled(port, context) as connection:
        return connection.getpeercert(binary_form=True)


def other_authority(site: Site, folder: Path) -> Files:
    return replace(Site(folder / "other").edge("edge-1"), authority=site.ca)


def other_cloud(site: Site, folder: Path) -> Files:
    return replace(site.edge("edge-1"), authority=Site(folder / "other").ca)


SHOWN: dict[str, tuple[bool, Callable[[Site, Path], Files]]] = {
    "a node's": (True, lambda site, _: site.edge("edge-1")),
    "a node's, to the wrong name": (False, lambda site, _: site.edge("edge-1")),
    "none": (False, lambda site, _: Files(None, None, site.ca)),
    "wrong authority": (False, other_authority),
    "another authority of the cloud": (False, other_cloud),
    "expired": (False, lambda site, _: site.edge("edge-1", at=PAST, name="expired")),
    "not yet valid": (False, lambda site, _: site.edge("edge-1", at=now() + DAY, name="future")),
    "a server's": (False, lambda site, _: site.cloud("server")),
}


@pytest.mark.parametrize("what", SHOWN)
def test_who_is_let_in(site: Site, cloud: Service, tmp_path: Path, what: str) -> None:
    welcome, shown = SHOWN[what]
    told: list[bool] = []

    async def connect() -> None:
        connection = Connection(
            f"localhost:{cloud.ports[1]}",
            connect_timeout_s=2.0,
            max_message_bytes=1 << 20,
            on_connection=told.append,
            on_change=lambda: None,
            tls=CloudTls(shown(site, tmp_path), "other.example" if "wrong name" in what else ""),
        )
        connection.start()
        async with asyncio.timeout(5):
            while not told:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await connection.close()

    asyncio.run(connect())
    assert told == [welcome]


def test_who_is_refused_at_the_door_answers_alone_and_says_why(asking: Asking, site: Site) -> None:
    edge = asking(edge_settings(site.edge("edge-1", at=PAST, name="expired"))).wait_ready()
    told(edge, "cannot reach the cloud")
    assert "a certificate is refused" in edge.log
    assert "expired.pem ended" in edge.log
    assert outcome(edge) == ("edge_fallback", "cloud_unreachable")
    assert not is_connected(edge)


def test_a_revoked_node_is_told_so_and_answers_alone(
    asking: Asking, site: Site, cloud: Service, tmp_path: Path
) -> None:
    edge = asking(edge_settings(site.edge("edge-lost"))).wait_ready()
    eventually(lambda: is_connected(edge), 5, "the edge is connected")
    assert outcome(edge) == ("edge_fallback", "unauthorized")
    assert cloud.metrics().total("tandem_refused_nodes_total", reason="revoked") >= 1
    told(cloud, "refusing a caller: node 'edge-lost': its certificate is revoked")


def test_old_protocols_are_refused_on_both_ports(cloud: Service, site: Site) -> None:
    for port in cloud.ports[:2]:
        for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
            files = site.edge("edge-1")
            context = ssl.create_default_context(cafile=site.ca)
            context.load_cert_chain(str(files.certificate), files.key)
            context.set_alpn_protocols(["h2" if port == cloud.ports[1] else "http/1.1"])
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1"):
                context.minimum_version = ssl.TLSVersion.TLSv1
            if version is ssl.TLSVersion.TLSv1_1:
                with pytest.warns(DeprecationWarning, match="TLSv1"):
                    context.maximum_version = version
                with pytest.raises(OSError), dialled(port, context):  # noqa: PT011 - SSLError or a reset
                    pass
            else:
                context.maximum_version = version
                with dialled(port, context) as connection:
                    assert connection.version() == "TLSv1.2"


def https(port: int, path: str, shown: Files | None, ca: Path, key: str = "") -> int:
    """The status of a GET with a certificate and a key, 0 when there is no connection."""
    context = ssl.create_default_context(cafile=ca)
    if shown is not None:
        context.load_cert_chain(str(shown.certificate), shown.key)
    connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=context)
    try:
        connection.request("GET", path, headers={"X-API-Key": key} if key else {})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_rest_is_for_nodes_and_health_for_all(cloud: Service, site: Site, tmp_path: Path) -> None:
    port, node = cloud.ports[0], site.edge("edge-1")
    assert https(port, "/v2", node, site.ca) == 200
    assert https(port, "/readyz", None, site.ca) == 200
    assert https(port, "/v2", None, site.ca) == 401
    assert https(port, "/v1/models", site.edge("edge-lost"), site.ca) == 403
    assert https(port, "/readyz", Site(tmp_path / "other").edge("edge-1"), site.ca) == 0
    assert https(port, "/readyz", site.edge("edge-1", at=PAST, name="expired"), site.ca) == 0
    assert get(port, "/readyz")[0] == 0


def test_devices_come_by_tls_and_with_keys_of_a_file_that_changes(
    services: Services, bundle: Path, tmp_path: Path
) -> None:
    wanted = Wanted([], [], ["camera"], DAY, ["edge.example"])
    made = make(tmp_path, wanted, now(), renew=False)
    edge = start_edge(
        services,
        bundle,
        "",
        {
            "tls_cert": tmp_path / "edges.pem",
            "tls_key": tmp_path / "edges.key",
            "api_keys": tmp_path / "devices.toml",
            "host": "0.0.0.0",
        },
    )
    told(edge, " ready: ")
    ca = tmp_path / "ca.pem"
    assert https(edge.ports[0], "/readyz", None, ca) == 200
    assert https(edge.ports[0], "/v1/models", None, ca) == 401
    assert https(edge.ports[0], "/v1/models", None, ca, made.keys["camera"]) == 200
    assert grpc_metadata(edge.ports[1], ca, made.keys["camera"]) == "OK"
    assert grpc_metadata(edge.ports[1], ca, "wrong") == "UNAUTHENTICATED"
    late = make(tmp_path, Wanted([], [], ["late"], DAY), now(), renew=False).keys["late"]
    eventually(lambda: https(edge.ports[0], "/v1/models", None, ca, late) == 200, 5, "the new key opens")
    write_private(tmp_path / "devices.toml", b"keys = []")
    eventually(lambda: https(edge.ports[0], "/v1/models", None, ca, late) == 401, 5, "no key opens")


def grpc_metadata(port: int, ca: Path, key: str) -> str:
    """The status of asking an edge node what it is."""
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            stub.ServerMetadata(oip.ServerMetadataRequest(), metadata=[("x-api-key", key)], timeout=5)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
