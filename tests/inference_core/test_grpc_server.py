"""A server that unknown methods do not reach: over real connections, with names that are no text."""

import asyncio
import contextlib
import os
import struct
import subprocess
import sys
from typing import Any

import grpc
import pytest

from inference_core.grpc_server import create_server

pytestmark = pytest.mark.anyio
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OPTIONS = [("grpc.so_reuseport", 0)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def echo(data: bytes, _: Any) -> bytes:
    return data


def with_echo(server: grpc.aio.Server) -> int:
    """The port of `server`, which has one method."""
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    server.add_registered_method_handlers("a", {"echo": handler})
    return server.add_insecure_port("127.0.0.1:0")


def call_of(path: bytes) -> bytes:
    """A call as HTTP/2 has it, without a message."""
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a")]
    headers += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    block = b"".join(b"\x00" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in headers)
    frames = ((4, 0, 0, b""), (1, 4, 1, block))
    return PREFACE + b"".join(struct.pack(">IBI", len(b) << 8 | k, f, s) + b for k, f, s, b in frames)


PATIENCE_S = 2.0  # until something comes back


async def send(port: int, data: bytes) -> bytes:
    """What comes back on a connection of its own, until there has been something."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S) as patience:
            while more := await reader.read(1 << 16):
                said += more
                patience.reschedule(asyncio.get_running_loop().time() + 0.2)
    writer.close()
    return said


async def test_names_that_are_no_text_end_nothing() -> None:
    server = create_server((), OPTIONS, 10)
    port = with_echo(server)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        known: Any = channel.unary_unary("/a/echo")
        for path in (b"/\xff\xe5", b"\x80", b"/a/echo\xff", b"/" + b"\xc3" * 100):
            assert b"Method not found!" in await send(port, call_of(path))
            assert await known(b"hello", timeout=10) == b"hello"
        unknown: Any = channel.unary_unary("/a/b")
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unknown(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert caught.value.details() == "Method not found!"
    async with asyncio.timeout(10):
        await server.stop(5)


async def test_callers_that_are_gone() -> None:
    server = create_server((), OPTIONS, 10)
    port = with_echo(server)
    await server.start()
    for _ in range(50):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(call_of(b"/nobody"))
        writer.transport.abort()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        known: Any = channel.unary_unary("/a/echo")
        assert await known(b"hello", timeout=10) == b"hello"
    await server.stop(0)


async def plain() -> None:
    """What grpc.aio does by itself; for a process of its own, since it may not survive that."""
    server = grpc.aio.server(options=OPTIONS)
    port = with_echo(server)
    await server.start()
    await send(port, call_of(b"/\xff\xe5"))
    try:
        await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        os._exit(7)
    os._exit(0)


def test_it_is_needed() -> None:
    """When this fails, gRPC for Python reads such names, and `inference_core/grpc_server.py` can go."""
    code = f"import asyncio, {__name__} as t; asyncio.run(t.plain())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert run.returncode in (7, -11), run.stderr.decode()[-2000:]
