"""Real servers for the load generator's tests, as processes: what they do to each request is known exactly.

`python -m tests.benchmarks.server PORT BEHAVIOUR [SERVICE_US] [EVERY]` answers one request after the other
over HTTP, each after SERVICE_US of work; every EVERYth it does what BEHAVIOUR says instead. `grpc` as
BEHAVIOUR is a server of gRPC's own library.
"""

import asyncio
import hashlib
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from selectors import EVENT_READ, DefaultSelector
from typing import Any

import grpc

from benchmarks.http1 import connect
from benchmarks.load import Broken
from benchmarks.processes import free_port

GOOD, BAD = b"good", b"evil"
STALL_S = 0.4
_START_S = 30.0


def python(port: int, behaviour: str, *words: object) -> list[str]:
    """The command that starts the server."""
    return [sys.executable, "-m", "tests.benchmarks.server", str(port), behaviour, *map(str, words)]


@contextmanager
def running(behaviour: str, *words: object) -> Iterator[int]:
    """The server as a process; its port."""
    port = free_port()
    with subprocess.Popen(python(port, behaviour, *words)) as process:
        try:
            end = time.monotonic() + _START_S
            while True:
                try:
                    connect(port).close()
                    break
                except Broken:
                    assert process.poll() is None
                    assert time.monotonic() < end
            yield port
        finally:
            process.kill()


def answer(content: bytes, status: str = "200 OK") -> bytes:
    """An answer of HTTP/1.1 in one piece."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(content), content)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\ngo\r\n2\r\nod\r\n0\r\n\r\n"


def serve(port: int, behaviour: str, service_us: float = 0.0, every: int = 1) -> None:
    """One request after the other, in the order they came."""
    selector, waiting, seen = DefaultSelector(), deque[socket.socket](), 0
    with socket.create_server(("127.0.0.1", port)) as listener:
        selector.register(listener, EVENT_READ)
        while True:
            for key, _ in selector.select(0 if waiting else None):
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    if key.fileobj.recv(1 << 16):  # requests are small: they come in one piece
                        waiting.append(key.fileobj)
                    else:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
            if waiting:
                seen += 1
                end = time.perf_counter() + service_us / 1e6
                while time.perf_counter() < end:
                    pass
                reply(waiting.popleft(), behaviour if seen % every == 0 else "", selector)


def reply(client: socket.socket, behaviour: str, selector: DefaultSelector) -> None:
    """One answer, as `behaviour` wants it; "" is a good one."""
    if behaviour == "stall":
        time.sleep(STALL_S)
    if behaviour == "close":
        selector.unregister(client)
        client.close()
    elif behaviour == "halves":
        whole = answer(GOOD)
        client.sendall(whole[:20])
        time.sleep(0.001)
        client.sendall(whole[20:])
    else:
        other = {"refuse": answer(b"no", "503 Busy"), "wrong": answer(BAD), "chunks": CHUNKED}
        client.sendall(other.get(behaviour, answer(GOOD)))


def digest(content: bytes) -> bytes:
    """What the server of gRPC answers to `content` at `/test/Echo`."""
    return hashlib.sha256(content).digest()


async def serve_grpc(port: int) -> None:
    """`/test/Echo` digests, `/test/Large` answers what it got, `/test/Fail` refuses."""
    context = grpc.aio.ServicerContext[Any, Any]

    async def echo(request: bytes, _: context) -> bytes:
        return digest(request)

    async def large(request: bytes, _: context) -> bytes:
        return request

    async def fail(_: bytes, context: context) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as told")

    methods = {"Echo": echo, "Large": large, "Fail": fail}
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
    }
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[2] == "grpc":
        asyncio.run(serve_grpc(int(sys.argv[1])))
    else:
        service_us, every = (sys.argv[3:] + ["0", "1"][len(sys.argv[3:]) :])[:2]
        serve(int(sys.argv[1]), sys.argv[2], float(service_us), int(every))
