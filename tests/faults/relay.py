"""Relays bytes to a port of this machine, with TLS on either side of it or on none."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

_CHUNK = 1 << 16


class Relay:
    """Between entering and leaving its block, whoever comes to `port` is led to `target`, another port.

    It speaks TLS as `serves` says to who comes, and as `dials` says to the target, where they are given.
    `accepted` are the connections so far, with or without a handshake after them.
    """

    def __init__(
        self, port: int, target: int, serves: ssl.SSLContext | None, dials: ssl.SSLContext | None
    ) -> None:
        self.accepted = 0
        self._target = target
        self._serves = serves
        self._dials = dials
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setblocking(False)
        self._listening: asyncio.Task[None] | None = None
        self._relays: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._listening = asyncio.create_task(self._accept())

    async def _close(self) -> None:
        if self._listening is not None:
            self._relays.add(self._listening)
        for task in self._relays:
            task.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            came, _ = await self._loop.sock_accept(self._listener)
            self.accepted += 1
            relay = asyncio.create_task(self._relay(came))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

    async def _relay(self, came: socket.socket) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                reader, writer = await self._welcome(came)
                stack.callback(writer.transport.abort)
                name = None if self._dials is None else "localhost"
                theirs, up = await asyncio.open_connection(
                    "127.0.0.1", self._target, ssl=self._dials, server_hostname=name
                )
                stack.callback(up.transport.abort)
            except OSError:
                return  # one of the two would not speak with us
            pumps = {
                asyncio.create_task(_pump(reader, up)),
                asyncio.create_task(_pump(theirs, writer)),
            }
            for pump in pumps:
                stack.callback(pump.cancel)
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)

    async def _welcome(self, came: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, came, ssl=self._serves)
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        return
