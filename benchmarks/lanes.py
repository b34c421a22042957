"""Lanes: the same requests by several routes at once, each over an edge node and a link of its own."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import orjson

from benchmarks.remote_link import RemoteEmulator
from toolchain.processes import Service

_TICKS = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Sample:
    """One request's body and the position of its true class."""

    body: bytes
    content_type: str
    truth: int


@dataclass(frozen=True)
class Route:
    """How a lane's requests are answered: `query` of each, and what the edge node is told in `settings`.

    With `share`, that part of the requests, drawn at random, is asked for in mode `cloud`, the others in mode
    `edge`. `fixed` says that it is one of those that `auto` is held against.
    """

    name: str
    query: dict[str, object]
    settings: dict[str, str] = field(default_factory=dict)
    share: float | None = None
    fixed: bool = True


@dataclass(frozen=True)
class Record:
    """What became of one request: which sample, when it was due, in seconds from the start of the phase, how
    many seconds it took, and what its outcome says."""

    sample: int
    at: float
    seconds: float
    right: bool
    source: str
    reason: str
    way: str
    bytes_up: int
    predicted_ms: float | None


class Device:
    """Keeps connections to one edge node; each carries one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, target: str, sample: Sample) -> Any:
        """The JSON answer to `sample` posted to `target`. Raises `RuntimeError` for any status but 200."""
        head = (
            f"POST {target} HTTP/1.1\r\nHost: edge\r\nContent-Type: {sample.content_type}\r\n"
            f"Content-Length: {len(sample.body)}\r\n\r\n"
        )
        while self._idle:
            try:
                return await self._exchange(*self._idle.pop(), head.encode(), sample.body)
            except (asyncio.IncompleteReadError, ConnectionError):
                continue  # it was idle for too long, and the node has closed it
        connection = await asyncio.open_connection("127.0.0.1", self._port)
        return await self._exchange(*connection, head.encode(), sample.body)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes
    ) -> Any:
        writer.write(head + body)
        async with asyncio.timeout(_TIMEOUT_S):
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            lines = answer.split("\r\n")
            size = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
            content = await reader.readexactly(size)
        self._idle.append((reader, writer))
        if " 200 " not in lines[0]:
            raise RuntimeError(f"{lines[0]}: {content[:200]!r}")
        return orjson.loads(content)

    async def close(self) -> None:
        """End all connections."""
        for _, writer in self._idle:
            writer.close()


class Lane:
    """One route with its edge node."""

    def __init__(self, route: Route, edge: Service, model: str, seed: int) -> None:
        self.route = route
        self._edge = edge
        self._device = Device(int(edge.url.rpartition(":")[2]))
        self._model = model
        self._random = np.random.default_rng(seed)

    @property
    def cpu_s(self) -> float:
        """Processor seconds that the edge node has used so far."""
        fields = Path(f"/proc/{self._edge.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    async def ask(self, number: int, sample: Sample, began: float, due: float) -> Record:
        """Post one sample that was due `due` seconds after `began`, by the monotonic clock."""
        query = dict(self.route.query)
        if self.route.share is not None:
            query["mode"] = "cloud" if self._random.random() < self.route.share else "edge"
        text = "&".join(f"{key}={value}" for key, value in query.items())
        answer = await self._device.post(f"/v1/models/{self._model}/predict?top_k=1&{text}", sample)
        return Record(
            sample=number,
            at=due,
            seconds=time.monotonic() - began - due,
            right=answer["prediction"]["index"] == sample.truth,
            source=answer["source"],
            reason=answer["reason"],
            way=answer.get("way") or ("edge" if answer["source"] != "cloud" else "input"),
            bytes_up=answer["bytes_up"],
            predicted_ms=answer.get("predicted_ms"),
        )

    async def close(self) -> None:
        """End the device's connections."""
        await self._device.close()


class Lanes:
    """A cloud, and for each route a link and an edge node: `async with` starts and ends them all."""

    def __init__(self, bundle: Path, routes: Sequence[Route], *, deadline_ms: int) -> None:
        self._bundle = bundle
        self._routes = routes
        self._deadline_ms = deadline_ms
        self._stack = AsyncExitStack()
        self.links = RemoteEmulator()
        self.lanes: list[Lane] = []

    async def __aenter__(self) -> Self:
        try:
            model = orjson.loads((self._bundle / "manifest.json").read_bytes())["model"]
            cloud = await self._stack.enter_async_context(
                Service("cloud_service", "CLOUD", {"BUNDLES": str(self._bundle), "THREADS": "1"})
            )
            self._stack.enter_context(self.links)
            for seed, route in enumerate(self._routes):
                port = self.links.add(int(cloud.grpc_target.rpartition(":")[2]))
                settings = {
                    "BUNDLES": str(self._bundle), "CLOUD": f"127.0.0.1:{port}", "WORKERS": "1",
                    "DEADLINE_MS": str(self._deadline_ms), "MAX_INFLIGHT": "10000", **route.settings,
                }  # fmt: skip
                edge = await self._stack.enter_async_context(Service("edge_node", "EDGE", settings))
                lane = Lane(route, edge, model, seed)
                self._stack.push_async_callback(lane.close)
                self.lanes.append(lane)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


async def take_turns(
    lanes: Sequence[Lane], samples: Sequence[tuple[int, Sample]], seconds: float
) -> dict[str, list[Record]]:
    """One request at a time: each sample by every lane, in an order that changes, for about `seconds`."""
    began, order = time.monotonic(), np.random.default_rng(0)
    records: dict[str, list[Record]] = {lane.route.name: [] for lane in lanes}
    for number, sample in samples:
        if time.monotonic() - began > seconds:
            break
        for place in order.permutation(len(lanes)):
            lane = lanes[place]
            due = time.monotonic() - began
            records[lane.route.name].append(await lane.ask(number, sample, began, due))
    return records


async def keep_pace(
    lanes: Sequence[Lane], samples: Sequence[tuple[int, Sample]], interval_s: float
) -> dict[str, list[Record]]:
    """Every lane sends sample after sample, one in each `interval_s`, whether or not answers have come: the
    time counts from when a request was due. The lanes' turns are spread over the interval."""
    began = time.monotonic() + 0.05

    async def send(lane: Lane, offset: float) -> list[Record]:
        tasks = []
        async with asyncio.TaskGroup() as group:
            for turn, (number, sample) in enumerate(samples):
                due = offset + turn * interval_s
                await asyncio.sleep(max(0.0, began + due - time.monotonic()))
                tasks.append(group.create_task(lane.ask(number, sample, began, due)))
        return [task.result() for task in tasks]

    found = await asyncio.gather(
        *(send(lane, interval_s * place / len(lanes)) for place, lane in enumerate(lanes))
    )
    return {lane.route.name: records for lane, records in zip(lanes, found, strict=True)}
