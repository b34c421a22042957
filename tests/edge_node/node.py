"""An edge node in the test's own process, and the cloud that it asks, made small.

`CloudSimulator` answers escalations truly, from a bundle, or fails as it is told, and keeps what it was
asked. `Node` is everything that `python -m edge_node` composes, without a port.
"""

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from prometheus_client import CollectorRegistry

from edge_node.admission import Admission, create_limit
from edge_node.app import create_app
from edge_node.cloud import Cloud, CloudAnswer, Query
from edge_node.dataplane import Dataplane
from edge_node.front import Front
from edge_node.joint import JointInference
from edge_node.keeper import Keeper
from edge_node.metrics import Metrics
from edge_node.model_slot import PROVIDERS, ModelSlots, load_models
from edge_node.navigator import Navigator
from edge_node.outcome import Outcome
from edge_node.preferences import Wishes
from edge_node.request import Ask
from edge_node.runner import Runner
from edge_node.settings import Settings
from inference_core.body import Intake
from inference_core.bundle import load_bundle
from inference_core.errors import CloudUnavailable, DeadlineExceeded
from inference_core.tensors import Parameter, to_request
from tests.bundles import Parts, constant, model_bytes, pool_and_classify, replace_file, write_bundle

BYTES_DOWN = 321


class CloudSimulator:
    """A `Cloud` in memory. `absent` is what `check` raises, `failure` what `infer` raises; a `silent` one
    lets every call run into its deadline, and with a `gate` calls wait until that is set."""

    def __init__(self, *folders: Path) -> None:
        self.asked: list[Query] = []
        self.timeouts: list[float] = []
        self.absent: CloudUnavailable | None = None
        self.failure: Exception | None = None
        self.silent = False
        self.arrived: asyncio.Event | None = None
        self.entered = threading.Event()
        self.gate: threading.Event | None = None
        self.parameters: dict[str, Parameter] = {}
        self._bundles = {bundle.manifest.model: bundle for bundle in map(load_bundle, folders)}

    def check(self, timeout_s: float) -> None:
        if self.absent is not None:
            raise self.absent

    async def infer(self, query: Query, timeout_s: float) -> CloudAnswer:
        self.asked.append(query)
        self.timeouts.append(timeout_s)
        if self.failure is not None:
            raise self.failure
        if self.silent:
            if self.arrived is not None:
                self.arrived.set()
            await asyncio.sleep(max(timeout_s, 0))
            raise DeadlineExceeded("silence")
        if self.gate is not None:
            self.entered.set()
            await asyncio.to_thread(self.gate.wait, 30)
        message = to_request(query.model, query.version, query.inputs, query.parameters, query.id)
        return CloudAnswer(self._logits(query), self.parameters, message.ByteSize(), BYTES_DOWN)

    def _logits(self, query: Query) -> NDArray[Any]:
        name, _, kind = query.model.partition(".")
        bundle = self._bundles[name]
        manifest, inputs = bundle.manifest, dict(query.inputs)
        file = manifest.full if not kind.startswith("tail.") else None
        if file is None:
            cut = manifest.cut(kind.removeprefix("tail."))
            assert cut is not None
            engine = bundle.engine(cut.tail, threads=1, providers=PROVIDERS)
        else:
            engine = bundle.engine(file, threads=1, providers=PROVIDERS)
        if kind == "image":
            assert manifest.preprocess is not None
            inputs = {manifest.input.name: manifest.preprocess.tensor(inputs["image"][0])}
        return engine.run(inputs)[manifest.output.name]


class Node:
    """One edge node; `changes` are settings."""

    def __init__(
        self,
        *bundles: Path,
        cloud: Cloud | None = None,
        navigator: Navigator | None = None,
        keeper: Keeper | None = None,
        loaded: bool = True,
        **changes: Any,
    ) -> None:
        # Long enough for a busy machine; tests of deadlines give their own.
        given: dict[str, Any] = {"deadline_ms": 20_000, "grpc_port": 0} | changes
        self.settings = Settings(bundles=bundles, **given)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.slots = ModelSlots()
        self.cloud = cloud
        self.executor = ThreadPoolExecutor(2)
        self.edge_runs: list[int] = []
        self.lag_s = 0.0
        self.runner = Runner(self.executor, workers=2, clock=time.monotonic)
        self.joint = JointInference(
            cloud,
            self.metrics,
            self.runner,
            self.executor,
            navigator=navigator,
            keeper=keeper,
            payload=self.settings.payload,
            privacy=self.settings.privacy,
            max_pixels=self.settings.max_pixels,
            admission=Admission(
                self.runner,
                max_inflight=self.settings.max_inflight,
                limit=create_limit(self.settings),
                clock=time.monotonic,
                on_shed=self.metrics.declined,
            ),
            reserve_s=self.settings.reserve_ms / 1000,
            lag=lambda: self.lag_s,
        )
        self.dataplane = Dataplane(self.slots, self.joint, version="1.2.3", max_rows=self.settings.max_rows)
        if loaded:
            self.load()

    def load(self) -> None:
        """What the service does once it listens."""
        models = load_models(self.settings)
        for model in models:
            self.metrics.add_model(model)
        self.slots.load(models)

    def app(self) -> Front:
        intake = Intake(self.settings.max_body_bytes, self.settings.max_held_bytes)
        return create_app(self.slots, self.joint, self.dataplane, self.metrics, intake)

    async def ask(
        self,
        sample: bytes | NDArray[Any],
        *,
        model: str = "colors",
        version: str = "",
        request_id: str = "",
        top_k: int = 5,
        late_s: float = 0.0,
        **wants: Any,
    ) -> Outcome:
        """The outcome for one sample that arrived `late_s` seconds ago; `wants` are preferences."""
        loaded = self.slots.get(model, version)
        if not isinstance(sample, bytes):
            loaded.check({loaded.manifest.input.name: sample})
        ask = Ask(loaded, sample, time.monotonic() - late_s, request_id, Wishes(**wants), top_k)
        return (await self.joint.infer(ask)).outcome

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 for a series that is not there."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """The series of a metric that are not zero, by the values of their labels in order of name."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name and sample.value
        }

    def close(self) -> None:
        self.executor.shutdown()


@contextlib.contextmanager
def node(*bundles: Path, **changes: Any) -> Iterator[Node]:
    """A node that ends with the block."""
    made = Node(*bundles, **changes)
    try:
        yield made
    finally:
        made.close()


def failing_bundle(folder: Path) -> Path:
    """A bundle whose edge model fails where a channel is wholly 1: it makes two values of one."""
    write_bundle(folder, cuts=())
    pool, flatten, _, *weights = pool_and_classify(bias=(0, 0, 0))
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
    replace_file(folder, "edge-int8.onnx", model_bytes(parts))
    return folder


def noise(size: int = 32) -> bytes:
    """A PNG that is larger than the tensor which is made of it: colours at random, seeded."""
    pixels = np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
