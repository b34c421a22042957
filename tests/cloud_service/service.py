"""The cloud service's models behind a real gRPC server on a free port, in the test's own process."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry

from cloud_service.decoders import Decoders
from cloud_service.descriptions import create_catalogue
from cloud_service.fleet import Fleet
from cloud_service.grpc_server import GrpcServer
from cloud_service.metrics import Metrics
from cloud_service.models import Models, load_models
from cloud_service.sample_metrics import SampleMetrics
from cloud_service.samples import Samples
from cloud_service.servicer import Servicer
from cloud_service.settings import Settings
from inference_core.tls import ServerTls
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import Parts, constant, model_bytes, pool_and_classify, replace_file, write_bundle

PATIENCE_S = 30.0


class Service:
    """A started service, the stub of a client of it, and a handle to hold its model runs."""

    def __init__(self, settings: Settings, tls: ServerTls | None = None) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.models = Models()
        self.runs = ThreadPoolExecutor(1)
        self.decoders = ThreadPoolExecutor(2)
        decoders = Decoders(self.decoders, 2)
        catalogue = create_catalogue(self.models, settings, "1.2.3")
        self.samples = None
        if settings.samples is not None:
            metrics = SampleMetrics(self.registry)
            self.samples = Samples(settings.samples, metrics, max_bytes=settings.samples_max_bytes)
        self.server = GrpcServer(
            Servicer(self.models, self.metrics, decoders, catalogue, settings.max_queue),
            settings,
            tls=tls,
            fleet=Fleet(self.models, self.metrics, decoders, self.samples),
        )

    async def start(self) -> None:
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.stub = oip_grpc.GRPCInferenceServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def load(self) -> None:
        self.models.load(load_models(self.settings, self.metrics, self.runs, time.monotonic))
        if self.samples is not None:
            await self.samples.open()
        await self.server.set_serving(True)

    async def stop(self) -> None:
        if self.server.port:
            await self.channel.close()
        await self.server.stop(0)
        await self.models.close()
        if self.samples is not None:
            await self.samples.close()
        self.runs.shutdown()
        self.decoders.shutdown()

    @contextlib.contextmanager
    def runs_held(self) -> Iterator[None]:
        """Inside the block no model run gets the thread that runs models."""
        gate = threading.Event()
        held: Future[bool] = self.runs.submit(gate.wait, PATIENCE_S)
        try:
            yield
        finally:
            gate.set()
            assert held.result()

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 for a series that is not there."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def total(self, name: str) -> float:
        """The sum over all series of a metric."""
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name
        )

    async def idle(self) -> None:
        """Turn the loop until every call that began has been counted as ended."""
        async with asyncio.timeout(PATIENCE_S):
            while self.total("grpc_server_started_total") != self.total("grpc_server_handled_total"):  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def began(self, model: str) -> None:
        """Turn the loop until a run of the model has begun."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.value("tandem_batch_size_count", model=model):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def queued(self, model: str, samples: int) -> None:
        """Turn the loop until this many samples of the model wait for a run."""
        async with asyncio.timeout(PATIENCE_S):
            while self.value("tandem_queue_depth", model=model) != samples:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(
    *bundles: Path, loaded: bool = True, tls: ServerTls | None = None, **changes: Any
) -> AsyncIterator[Service]:
    """A service of these bundles; `changes` are settings. Runs take the thread, where they can be held."""
    options: dict[str, Any] = {"grpc_port": 0, "threads": 1, "inline_ms": 0} | changes
    service = Service(Settings(bundles=bundles, **options), tls)
    try:
        await service.start()
        if loaded:
            await service.load()
        yield service
    finally:
        await service.stop()


def failing_bundle(folder: Path) -> Path:
    """A bundle whose full model fails where a channel is wholly 1: it makes two values of one."""
    write_bundle(folder, cuts=())
    pool, flatten, _, *weights = pool_and_classify()
    parts: Parts = [
        pool,
        flatten,
        helper.make_node("Gemm", ["means", "weights", "bias"], ["plain"]),
        *weights,
        constant("zero", [0.0]),
        helper.make_node("ReduceMax", ["means"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["at"], to=TensorProto.INT64),
        constant("one", [1], np.int64),
        helper.make_node("Add", ["at", "one"], ["size"]),
        helper.make_node("Reshape", ["zero", "size"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
    ]
    replace_file(folder, "full.onnx", model_bytes(parts))
    return folder
