"""A TCP link with a round trip, rates, jitter, stalls and outages, between programs on this machine.

`python -m benchmarks.link PORT --profile 4g` relays to PORT of this machine as a 4G network would, until it
is interrupted. `Emulator` does the same from a thread, and `RemoteEmulator` (`remote_link.py`) from a
process of its own, so that what is measured does not share an interpreter with the link.

Each direction is one queue that all connections share, as they share a radio: bytes wait for those before
them, take their size by the rate, then half the round trip and the jitter. Order and bytes are kept: what a
network loses, TCP sends again, and what is left of that at this level is a stall. During an outage nothing
moves, and connections are still accepted by the kernel. Setting up a connection costs no round trip here.
"""

import argparse
import asyncio
import random
import selectors
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.conditions import PERFECT, PROFILES, Conditions

_READ = 1 << 16
_HELD = 1 << 20  # bytes waiting in one direction, from which a sender is not read any more
_GRAIN_S = 0.004  # a segment takes at most this long to send, so that changes are felt in time
_SEGMENT = 1400  # bytes, at least
_T = TypeVar("_T")


@dataclass
class Counts:
    """Bytes that have entered a link, by direction; up is towards the target."""

    up: int = 0
    down: int = 0


class _Way:
    """One direction of a link: a queue before the bottleneck, and the air behind it."""

    def __init__(self, up: bool, seed: int) -> None:
        self._up = up
        self._random = random.Random(seed)  # noqa: S311 - a link's moods, no secrets
        self._conditions = PERFECT
        self._waiting: asyncio.Queue[tuple[float, asyncio.StreamWriter, bytes]] = asyncio.Queue()
        self._flying: asyncio.Queue[tuple[float, asyncio.StreamWriter, bytes]] = asyncio.Queue()
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()
        self._changed = asyncio.Event()
        self._free_at = 0.0
        self._due = 0.0
        self.count = 0
        self.tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._deliver())]

    def set(self, conditions: Conditions) -> None:
        """These rule from now on; what is in the air keeps its time."""
        self._conditions = conditions
        self._changed.set()
        self._changed = asyncio.Event()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take everything that `reader` gives, its end included."""
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            await self._room.wait()
            try:
                data = await reader.read(_READ)
            except OSError:
                data = b""
            self.count += len(data)
            self._held += len(data)
            if self._held > _HELD:
                self._room.clear()
            self._waiting.put_nowait((loop.time(), writer, data))

    async def drained(self) -> None:
        """Return when everything taken so far has been delivered."""
        for queue in (self._waiting, self._flying):
            await queue.join()

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            arrived, writer, data = await self._waiting.get()
            size = len(data)
            begin = max(self._free_at, arrived)
            while True:
                if self._conditions.out:
                    await self._changed.wait()
                    begin = loop.time()
                    continue
                rate = self._conditions.up if self._up else self._conditions.down
                segment = data[: max(_SEGMENT, int(rate * _GRAIN_S))]
                data = data[len(segment) :]
                begin += len(segment) / rate + self._stall(len(segment) / rate)
                jitter = self._random.uniform(0, 2 * self._conditions.jitter_s)
                self._flying.put_nowait((begin + self._conditions.round_trip_s / 2 + jitter, writer, segment))
                await _until(begin)
                if not data:
                    break
            self._free_at = begin
            self._held -= size
            self._waiting.task_done()
            if self._held <= _HELD:
                self._room.set()

    def _stall(self, seconds: float) -> float:
        """How long this segment is held up besides: stalls come at random, per second of sending."""
        conditions = self._conditions
        chance = conditions.stalls_per_s * max(seconds, _GRAIN_S)
        return conditions.stall_s if self._random.random() < chance else 0.0

    async def _deliver(self) -> None:
        while True:
            due, writer, data = await self._flying.get()
            self._due = max(self._due, due)
            await _until(self._due)
            self._flying.task_done()
            if data and not writer.is_closing():
                writer.write(data)
            elif writer.can_write_eof():
                with suppress(OSError):
                    writer.write_eof()


async def _until(when: float) -> None:
    left = when - asyncio.get_running_loop().time()
    if left > 0:
        await asyncio.sleep(left)


class _Link:
    """One listening port, and the target behind it."""

    def __init__(self, target: int, seed: int) -> None:
        self._target = target
        self.ways = (_Way(True, seed), _Way(False, seed + 1))
        self._server: asyncio.Server | None = None
        self._closing = False
        self._relays: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    async def listen(self, port: int = 0) -> int:
        """Accept connections from now on; the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        up, down = self.ways
        pumps = (
            asyncio.create_task(up.pump(reader, far_writer)),
            asyncio.create_task(down.pump(far_reader, writer)),
        )
        self._relays[pumps[0]] = self._relays[pumps[1]] = (writer, far_writer)
        await asyncio.wait(pumps)
        for pump in pumps:
            del self._relays[pump]
        if not self._closing:
            await asyncio.gather(*(way.drained() for way in self.ways))
        for end in (writer, far_writer):
            end.close()

    async def close(self) -> None:
        """End all connections at once."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for ends in self._relays.values():
            for end in ends:
                end.transport.abort()
        tasks = [*self._relays, *(task for way in self.ways for task in way.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Emulator:
    """Links in a thread of this process: `with Emulator() as links: port = links.add(9001)`."""

    def __init__(self, seed: int = 0) -> None:
        # Other selectors round what they wait for up to milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="link")
        self._links: list[_Link] = []
        self._conditions = PERFECT
        self._seed = seed

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links:
            self._do(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, target: int, port: int = 0) -> int:
        """The port of a new link to `target`, a port of this machine; `port` 0 picks a free one."""
        return self._do(self._add(target, port))

    def set(self, conditions: Conditions) -> None:
        """Rule all links by these from now on; in force when this returns."""
        self._do(self._set(conditions))

    def replay(self, trace: Sequence[Conditions], step_s: float = 1.0) -> None:
        """Set one after the other, each for `step_s` seconds; returns at the end."""
        began = time.monotonic()
        for number, conditions in enumerate(trace):
            self.set(conditions)
            time.sleep(max(0.0, began + (number + 1) * step_s - time.monotonic()))

    def counts(self) -> list[Counts]:
        """What each link has been given so far, in the order in which they were added."""
        return [Counts(*(way.count for way in link.ways)) for link in self._links]

    async def _add(self, target: int, port: int) -> int:
        link = _Link(target, self._seed + 2 * len(self._links))
        for way in link.ways:
            way.set(self._conditions)
        self._links.append(link)
        return await link.listen(port)

    async def _set(self, conditions: Conditions) -> None:
        self._conditions = conditions
        for link in self._links:
            for way in link.ways:
                way.set(conditions)

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Relay TCP to a port of this machine over a made-up link.")
    parser.add_argument("target", type=int, help="port of 127.0.0.1 to relay to")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="4g", help="what the link is like")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 picks a free one")
    arguments = parser.parse_args()
    with Emulator() as links:
        port = links.add(arguments.target, arguments.port)
        print(f"127.0.0.1:{port} is {arguments.profile} to 127.0.0.1:{arguments.target}", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                links.replay(PROFILES[arguments.profile].trace)


if __name__ == "__main__":
    main()
