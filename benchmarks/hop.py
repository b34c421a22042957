"""The escalation hop: from the edge's cloud client to the cloud service and back, the model's time left out.

The cloud serves a network that does next to nothing, and says with each answer how long it waited and ran;
that is taken off. Beside it runs the same request as a plain unary call of gRPC.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.models import pack
from benchmarks.networks import INPUT, OUTPUT, Graph
from benchmarks.processes import Cores, Failed, Process, free_port, pinned
from benchmarks.report import Hop
from benchmarks.systems import START_S
from benchmarks.ways import MODEL_INFER
from edge_node.breaker import Breaker, Rules
from edge_node.cloud import Query
from edge_node.cloud_client import CloudClient
from edge_node.settings import tune_grpc
from inference_core.errors import CloudUnavailable
from inference_core.manifest import TensorInfo
from inference_core.tensors import get_parameters, to_request
from protos import open_inference_pb2 as oip

OURS, UNARY = "Tandem's cloud client", "unary gRPC, bare"
SHAPES = {3_000: (1, 25, 30), 150_000: (1, 150, 250)}
_CLASSES = 3
_TURNS = 3
_TIMEOUT_S = 5.0
_MAX_BYTES = 16 << 20

Call = Callable[[], Awaitable[Mapping[str, Any]]]  # one escalation; what the cloud says of it


@dataclass(frozen=True)
class _Ask:
    model: str
    sample: NDArray[np.float32]

    @property
    def query(self) -> Query:
        expect = TensorInfo(name=OUTPUT, datatype="FP32", shape=(_CLASSES,))
        return Query("hop", self.model, "1", {INPUT: self.sample}, {}, expect)


def hops(cores: Cores, logs: Path, seconds: float) -> Iterator[Hop]:
    """Each payload over each way, `seconds` of each. Raises `Failed` when the cloud does not start."""
    tune_grpc()  # as the edge node itself does
    asks = {size: _pack(size, shape, logs) for size, shape in SHAPES.items()}
    port = free_port()
    settings = {
        "bundles": ",".join(str(logs / ask.model) for ask in asks.values()),
        "grpc_port": port,
        "http_port": 0,
        "metrics_port": 0,
        "threads": 1,
    }
    chosen = {f"CLOUD_{name.upper()}": str(value) for name, value in settings.items()}
    process = Process([sys.executable, "-m", "cloud_service"], cores.server, logs / "cloud.log", chosen)
    try:
        with pinned(cores.client):
            yield from uvloop.run(_measure(port, asks, seconds))
    except CloudUnavailable as error:
        raise Failed(f"the cloud: {error}; {process.log}") from error
    finally:
        process.stop()


def _pack(size: int, shape: tuple[int, ...], folder: Path) -> _Ask:
    """A bundle whose full model is the mean of its input and a small matrix, and a sample for it."""
    model = f"hop-{size}"
    graph = Graph(*shape)
    pack(model, "fp32", graph.classify(graph.input, _CLASSES), folder / model)
    rng = np.random.default_rng(size)
    return _Ask(model, rng.random((1, *shape), dtype=np.float32))


async def _measure(port: int, asks: Mapping[int, _Ask], seconds: float) -> list[Hop]:
    client = CloudClient(
        f"127.0.0.1:{port}",
        Breaker(Rules(5), 0.5, jitter=lambda: 1.0, on_change=lambda _: None),
        connect_timeout_s=2.0,
        patience_s=_TIMEOUT_S,
        max_message_bytes=_MAX_BYTES,
        on_connection=lambda _: None,
    )
    options = [("grpc.max_receive_message_length", _MAX_BYTES), ("grpc.max_send_message_length", _MAX_BYTES)]
    client.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            await _until_ready(client, next(iter(asks.values())))
            found = []
            for size, ask in asks.items():
                calls = {OURS: _over_client(client, ask), UNARY: _over_unary(channel, ask)}
                times: dict[str, list[float]] = {what: [] for what in calls}
                for _ in range(_TURNS):
                    for what, call in calls.items():
                        times[what] += await _repeat(call, seconds / _TURNS)
                for what, taken in times.items():
                    p50, p99 = np.percentile(taken, (50, 99)) * 1e6
                    found.append(Hop(what, size, float(p50), float(p99)))
            return found
    finally:
        await client.close()


async def _until_ready(client: CloudClient, ask: _Ask) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            await client.infer(ask.query, _TIMEOUT_S)
        except CloudUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)
        else:
            return


def _over_client(client: CloudClient, ask: _Ask) -> Call:
    async def call() -> Mapping[str, Any]:
        answer = await client.infer(ask.query, _TIMEOUT_S)
        return answer.parameters

    return call


def _over_unary(channel: grpc.aio.Channel, ask: _Ask) -> Call:
    method = channel.unary_unary(
        MODEL_INFER,
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )

    async def call() -> Mapping[str, Any]:
        request = to_request(ask.model, "1", {INPUT: ask.sample}, {}, "hop")
        response = await method(request, timeout=_TIMEOUT_S)
        return get_parameters(response.parameters)

    return call


async def _repeat(call: Call, seconds: float) -> list[float]:
    """Seconds of each call, one after the other, without what the cloud says of queue and model."""
    times = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        told = await call()
        taken = time.perf_counter() - started
        times.append(taken - (told["tandem_queue_ms"] + told["tandem_infer_ms"]) / 1000)
    return times
