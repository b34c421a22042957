"""Whose call it is: the certificate says, and nothing that the caller writes into it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from cloud_service.guard import OPEN_CALLS, CallGuard
from cloud_service.identity import caller_of, host_of
from cloud_service.nodes import Nodes
from edge_node.cloud_tls import CloudTls
from inference_core.certificate import Files
from inference_core.tls import ServerTls
from tests.certificates import Site

METHOD = "/tandem.Test/Who"


@contextlib.asynccontextmanager
async def serving(tls: ServerTls | None, *, guarded: bool = True) -> AsyncIterator[int]:
    """The port of a server that answers who calls, behind the guard."""

    async def who(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return caller_of(context).encode()

    async def each(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        yield caller_of(context).encode()

    async def well(_: bytes, __: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return b"well"

    interceptors = [CallGuard(Nodes(revoked=["edge-lost"]))] if guarded else []
    server = grpc.aio.server(interceptors=interceptors)
    one: dict[str, Any] = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Each": grpc.unary_stream_rpc_method_handler(each),
    }
    server.add_registered_method_handlers("tandem.Test", one)
    health: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(well)}
    server.add_registered_method_handlers("grpc.health.v1.Health", health)
    address = "127.0.0.1:0"
    port = (
        server.add_insecure_port(address)
        if tls is None
        else server.add_secure_port(address, tls.grpc_credentials())
    )
    await server.start()
    yield port
    await server.stop(0)


async def ask(port: int, files: Files | None, method: str = METHOD) -> str:
    """The answer, or the name of the status and its words."""
    claims = (("tandem_node", "edge-9"), ("x-node-id", "edge-9"))
    options = [("grpc.primary_user_agent", "edge-9")]
    target = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.insecure_channel(target, options)
        if files is None
        else grpc.aio.secure_channel(target, CloudTls(files).credentials, options)
    )
    async with channel:
        call: Any = channel.unary_unary(method)
        try:
            return bytes(await call(b"I am edge-9", metadata=claims, timeout=5)).decode()
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.mark.anyio
async def test_the_certificate_says_who_it_is_whatever_the_call_claims(site: Site) -> None:
    async with serving(ServerTls(site.cloud())) as port:
        assert await ask(port, site.edge("edge-1")) == "edge-1"
        assert await ask(port, site.edge("edge-2")) == "edge-2"


@pytest.mark.anyio
async def test_without_tls_it_is_the_host(site: Site) -> None:
    async with serving(None, guarded=False) as port:
        assert await ask(port, None) == "127.0.0.1"


@pytest.mark.anyio
async def test_a_certificate_of_no_node_gets_a_connection_and_no_answer(site: Site, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, person = tmp_path / "ca.pem", tmp_path / "person.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("someone@example.org").private_key_and_cert_chain_pem.write_to_path(person)
    own = tmp_path / "own.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(own)
    async with serving(ServerTls(Files(own, own, ca))) as port:
        shown = Files(person, person, ca)
        assert (await ask(port, shown)).startswith("PERMISSION_DENIED: the certificate has 0 URI names")
        assert await ask(port, shown, f"{OPEN_CALLS}Check") == "well"


@pytest.mark.anyio
async def test_every_kind_of_call_is_guarded(site: Site) -> None:
    lost = site.edge("edge-lost")
    async with serving(ServerTls(site.cloud())) as port:
        for method in ("Who", "Each"):
            refused = await ask(port, lost, f"/tandem.Test/{method}")
            assert refused == "PERMISSION_DENIED: node 'edge-lost': its certificate is revoked"
        assert (await ask(port, lost, "/tandem.Test/None")).startswith("UNIMPLEMENTED")
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", CloudTls(site.edge("edge-1")).credentials)
        async with channel:
            stream: Any = channel.unary_stream("/tandem.Test/Each")
            assert [bytes(message) async for message in stream(b"")] == [b"edge-1"]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:51234", "10.0.0.7"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[fe80::1]:80", "fe80::1"),
        ("unix:/run/tandem.sock", "unix:/run/tandem.sock"),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host
