"""Strangers at the cloud's door, by gRPC and by HTTPS: none gets in, and new certificates cost no answer."""

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from inference_core.certificate import Files
from tests.bundles import UNSURE, picture, write_bundle
from tests.certificates import DAY, PAST, Site, cloud_settings
from tests.faults.contexts import OLD, only
from tests.faults.plain_client import MODEL_INFER, Call, ask
from tests.faults.plain_forwarder import PUT_SAMPLE, put_request
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.services import Service, Services, eventually
from toolchain.authority import now

TIMEOUT_S = 3.0
NAME = "localhost"
REVOKED = "edge-lost"


@dataclass(frozen=True)
class Door:
    """A cloud's gRPC and HTTPS ports, and the files of who is welcome there."""

    service: Service
    site: Site
    folder: Path
    bundle: Path

    def by_grpc(self, files: Files | None, name: str = NAME) -> bool:
        """Whether a call is answered; without `files`, one in clear text."""
        with _channel(self.service.ports[1], files, name) as channel:
            call: Call = channel.unary_unary(MODEL_INFER)
            return ask(call, TIMEOUT_S)

    def by_https(self, files: Files, name: str = NAME, version: ssl.TLSVersion | None = None) -> bool:
        """Whether a question is answered."""
        return https(self.service.ports[0], files, name, version)


def shakes_hands(port: int, files: Files, version: ssl.TLSVersion) -> bool:
    """Whether a server of gRPC agrees on this version."""
    context = _context(files, version)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            return connection.version() is not None
    except OSError:
        return False


def https(port: int, files: Files, name: str = NAME, version: ssl.TLSVersion | None = None) -> bool:
    """Whether a server that calls itself `name` answers who shows `files` and speaks `version`."""
    context = _context(files, version)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            connection.sendall(f"GET /v2 HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _channel(port: int, files: Files | None, name: str) -> grpc.Channel:
    if files is None:
        return grpc.insecure_channel(f"127.0.0.1:{port}")
    key, certificate = (path.read_bytes() if path else None for path in (files.key, files.certificate))
    credentials = grpc.ssl_channel_credentials(_authority(files), key, certificate)
    options = [("grpc.ssl_target_name_override", name)]
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


def _authority(files: Files) -> bytes:
    assert files.authority is not None
    return files.authority.read_bytes()


def _context(files: Files, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.authority)
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    if version is not None:
        only(context, version)
    return context


# ---- who comes


def _nobody(door: Door) -> bool:
    files = Files(None, None, door.site.ca)
    return door.by_grpc(files) or door.by_https(files)


def _clear_text(door: Door) -> bool:
    return door.by_grpc(None)


def _shown(make: Callable[[Door], Files]) -> Callable[[Door], bool]:
    def come(door: Door) -> bool:
        files = make(door)
        return door.by_grpc(files) or door.by_https(files)

    return come


def _other_authority(door: Door) -> Files:
    return replace(Site(door.folder / "other").edge("edge-1"), authority=door.site.ca)


def _other_name(door: Door) -> bool:
    files = door.site.edge("edge-1")
    return door.by_grpc(files, "cloud.example") or door.by_https(files, "cloud.example")


def _claims(door: Door) -> bool:
    """A sample in another node's name."""
    digest = hashlib.sha256((door.bundle / "manifest.json").read_bytes()).hexdigest()
    request = put_request(picture(UNSURE), digest)
    request.node = "edge-2"
    with _channel(door.service.ports[1], door.site.edge("edge-1"), NAME) as channel:
        put: Call = channel.unary_unary(PUT_SAMPLE)
        return put.future(request.SerializeToString(), timeout=TIMEOUT_S).exception() is None


def _old_protocol(door: Door) -> bool:
    files = door.site.edge("edge-1")
    return door.by_https(files, version=OLD) or shakes_hands(door.service.ports[1], files, OLD)


STRANGERS: dict[str, Callable[[Door], bool]] = {
    "clear text": _clear_text,
    "no certificate": _nobody,
    "wrong authority": _shown(_other_authority),
    "expired": _shown(lambda door: door.site.edge("edge-1", at=PAST, name="expired")),
    "not yet valid": _shown(lambda door: door.site.edge("edge-1", at=now() + DAY, name="future")),
    "a certificate of no node": _shown(lambda door: door.site.cloud("server")),
    "a revoked node": _shown(lambda door: door.site.edge(REVOKED)),
    "wrong name": _other_name,
    "another node's identity": _claims,
    "old protocol": _old_protocol,
}


# ---- the doors


@contextmanager
def lax_server(files: Files, connections: int) -> Iterator[int]:
    """A plain server that speaks old protocols, for so many connections; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert files.certificate is not None
    context.load_cert_chain(files.certificate, files.key)
    only(context, OLD)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(connections):
                accepted, _ = listener.accept()
                with context.wrap_socket(accepted, server_side=True) as connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(TIMEOUT_S)


class Street:
    """The door as it should be, one that asks for no certificates, and one without TLS."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.site = Site(folder / "site")
        self.bundle = write_bundle(folder / "colors")
        self._services = services
        self._folder = folder
        served = cloud_settings(self.site.cloud())
        revoked = folder / "revoked"
        revoked.write_text(f"{REVOKED}\n")
        self.closed = self._door("closed", served | {"revoked_nodes": revoked})
        self.open = self._door("open", served | {"tls_client_ca": ""})
        self.plain = self._door("plain", {})
        node = self.site.edge("edge-1")
        assert self.closed.by_grpc(node), "a node is welcome"
        assert self.closed.by_https(node), "a node is welcome"

    def _door(self, name: str, settings: dict[str, object]) -> Door:
        samples = {"samples": self._folder / f"{name}.db", "threads": 1}
        service = self._services.start("cloud_service", name, {"bundles": self.bundle} | samples | settings)
        eventually(lambda: " ready: " in service.log, 20, f"{name} is ready")
        return Door(service, self.site, self._folder, self.bundle)

    def twin(self, name: str, attempts: int) -> tuple[str, int]:
        """What is taken away, and in how many attempts the stranger got in then."""
        if name == "clear text":
            return "TLS", sum(_clear_text(self.plain) for _ in range(attempts))
        if name == "wrong name":
            node = self.site.edge("edge-1")
            return "the name to expect", sum(self.closed.by_grpc(node) for _ in range(attempts))
        if name == "old protocol":
            with lax_server(self.site.cloud("lax"), attempts) as port:
                files = self.site.edge("edge-1")
                got_in = sum(https(port, files, version=OLD) for _ in range(attempts))
            return "the least version", got_in
        return "the authority of clients", sum(STRANGERS[name](self.open) for _ in range(attempts))


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    folder = tmp_path_factory.mktemp("street")
    with Services(folder) as services:
        yield Street(services, folder)


@pytest.mark.parametrize("name", STRANGERS)
def test_stranger(name: str, street: Street, row: Row) -> None:
    attempts = row.count(3, 100)
    got_in = sum(STRANGERS[name](street.closed) for _ in range(attempts))
    found = Finding(attempts, got_in, f"{got_in} got in")
    removed, twin = street.twin(name, attempts)
    row.judge(Case(f"TLS: {name}", found, Finding(attempts, twin, f"{twin} got in"), removed))
