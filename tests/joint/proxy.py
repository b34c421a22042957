"""A TCP proxy between edge and cloud that fails on command, in the ways that networks do."""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

from tests.joint.services import free_port

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds; closing then sends RST
_HTTP2_HEADER = 9
_HTTP2_DATA = 0


class Way(Enum):
    """A direction: UP is from the edge to the cloud."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Fault:
    """What goes wrong, from now on, on the connections there are and on new ones.

    `cut_answers` ends a connection in the middle of its next answer; `drip_s` is the time between two
    bytes; `garble` puts random bytes in the place of real ones. Silence holds bytes back and lets them go
    when it ends, as TCP does; connections are still accepted, since the kernel does that. `reset_first`
    ends the present connections when the fault begins. `forget` lets no byte through on them ever again, as
    when something between the two has forgotten them. New connections go to `target` where it is a port.
    """

    refuse: bool = False
    reset_first: bool = False
    silent: frozenset[Way] = frozenset()
    delay_s: float = 0.0
    cut_answers: bool = False
    drip_s: float = 0.0
    garble: bool = False
    forget: bool = False
    target: int | None = None


HEALTHY = Fault()
REFUSE = Fault(refuse=True)
SILENT = Fault(silent=frozenset(Way))


class Proxy:
    """Listens on `port` and relays to a port of this machine, by the rules of the present fault. With
    `record`, `went_up` is everything that came from the edge. To the cloud, it comes from the address
    `source` of this machine."""

    def __init__(self, target: int, *, record: bool = False, source: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.accepted = 0
        self.went_up = bytearray()
        self._record = record
        self._source = source
        self._target = target
        self._fault = HEALTHY
        self._random = random.Random(5)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._links: set[_Link] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._closing = False
        self._server: asyncio.Server | None = None
        self._healed = asyncio.Event()

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

    def begin(self, fault: Fault) -> None:
        """Fail like this until told otherwise; in force when this returns."""
        self._do(self._begin(fault))

    def heal(self) -> None:
        """Relay everything again, first of all what was held back."""
        self._do(self._begin(HEALTHY))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _begin(self, fault: Fault) -> None:
        self._fault = fault
        if fault.forget:
            for link in self._links:
                link.forgotten = True
        if fault.refuse or fault.reset_first:
            for link in tuple(self._links):
                link.reset()
        if fault.refuse and self._server is not None:
            self._server.close()
            self._server = None
        elif not fault.refuse and self._server is None:
            await self._listen()
        self._healed.set()
        self._healed = asyncio.Event()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._closing = True
        for link in tuple(self._links):
            link.reset()
        await asyncio.gather(*self._relays)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        relay = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(
                "127.0.0.1", self._fault.target or self._target, local_addr=(self._source, 0)
            )
        except OSError:
            _reset(writer)
            return
        link = _Link((writer, up_writer))
        if self._closing:
            link.reset()
            return
        self._links.add(link)
        pumps = (
            asyncio.create_task(self._pump(Way.UP, reader, up_writer, link)),
            asyncio.create_task(self._pump(Way.DOWN, up_reader, writer, link)),
        )
        link.tasks = pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.reset()
            await asyncio.wait(pumps)
            self._links.discard(link)

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: "_Link"
    ) -> None:
        """Relay one direction until its end. Reading goes on while writing waits, so delays do not add up."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        reading = asyncio.create_task(self._read(reader, chunks))
        frames = _Frames() if way is Way.DOWN else None
        try:
            while True:
                arrived, data = await chunks.get()
                await self._until(lambda: way not in self._fault.silent and not link.forgotten)
                due = arrived + self._fault.delay_s
                await self._until(lambda: self._fault.delay_s == 0, due - self._loop.time())
                cut = None if frames is None else frames.inside_data(data)
                if self._fault.cut_answers and cut is not None:
                    writer.write(data[:cut])
                    link.close()
                    return
                if not data:
                    return
                if self._record and way is Way.UP:
                    self.went_up += data
                await self._write(writer, data)
        except OSError:
            return
        finally:
            reading.cancel()

    async def _read(self, reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Everything that arrives, with its time; nothing at the end."""
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            chunks.put_nowait((self._loop.time(), data))

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self._fault.garble:
            data = self._random.randbytes(len(data))
        while data:
            step = 1 if self._fault.drip_s else len(data)
            writer.write(data[:step])
            await writer.drain()
            data = data[step:]
            await self._until(lambda: self._fault.drip_s == 0, self._fault.drip_s)

    async def _until(self, over: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait for `over`, which only a new fault can change."""
        ends = None if timeout_s is None else self._loop.time() + timeout_s
        while not over():
            left = None if ends is None else ends - self._loop.time()
            if left is not None and left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._healed.wait()
            except TimeoutError:
                return


class _Link:
    """Both connections of one relay."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._writers = writers
        self.tasks: tuple[asyncio.Task[None], ...] = ()
        self.forgotten = False

    def reset(self) -> None:
        """End both connections with RST."""
        for writer in self._writers:
            _reset(writer)
        for task in self.tasks:
            task.cancel()

    def close(self) -> None:
        """End both connections after what has been written so far."""
        for writer in self._writers:
            writer.close()


class _Frames:
    """Follows the HTTP/2 frames that a server sends, to tell where the payload of an answer is."""

    def __init__(self) -> None:
        self._left = 0
        self._header = b""

    def inside_data(self, chunk: bytes) -> int | None:
        """A place in `chunk` in the middle of a DATA frame's payload, or None when it holds none."""
        at, found = 0, None
        while at < len(chunk):
            if self._left:
                step = min(self._left, len(chunk) - at)
                self._left -= step
                at += step
                continue
            self._header += chunk[at : at + 1]
            at += 1
            if len(self._header) == _HTTP2_HEADER:
                self._left = int.from_bytes(self._header[:3], "big")
                if self._header[3] == _HTTP2_DATA and self._left > 1 and found is None:
                    found = min(len(chunk), at + self._left // 2)
                self._header = b""
        return found


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
