"""Joint inference: one sample in, one `Outcome` out, whoever answers it.

Top to bottom: take the model, look with the edge model where the mode says so, decide, ask the cloud where
that was the decision, and fall back to the edge's own answer when the cloud gives none.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_node import policy
from edge_node.cloud import Cloud, CloudAnswer, Query
from edge_node.metrics import Metrics
from edge_node.model_slot import EdgeRun, LoadedModel, ModelSlots
from edge_node.outcome import Answer, EdgeAnswer, ModelRef, Outcome, rank
from edge_node.policy import Budget, Decision, Mode, Payload, Route, Source
from edge_node.settings import Preferences
from inference_core.confidence import softmax
from inference_core.errors import CloudUnavailable, InvalidInput, Overloaded
from inference_core.tensors import Parameter, Tensors

NO_PREFERENCES = Preferences()
_P = ParamSpec("_P")
_T = TypeVar("_T")
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ask:
    """One sample and what its sender wants of it.

    `sample` is an encoded image, or the input tensor with a first axis of 1. `arrived` is the monotonic
    time, in seconds, at which the request came in: the deadline counts from there.
    """

    model: str
    sample: bytes | NDArray[Any]
    arrived: float
    version: str = ""
    id: str = ""
    wants: Preferences = NO_PREFERENCES
    top_k: int = 5


@dataclass(frozen=True, slots=True)
class _Request:
    """An ask with every open question settled, and the milliseconds of each stage so far."""

    ask: Ask
    id: str
    model: LoadedModel
    mode: Mode
    cut: str | None
    threshold: float
    deadline: float
    timings_ms: dict[str, float] = field(default_factory=dict)

    def timed(self, stage: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call `function` and note the time it takes as that of `stage`."""
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self.timings_ms[stage] = (time.perf_counter() - started) * 1000

    def run_edge(self, tensor: NDArray[Any]) -> EdgeRun:
        """What the edge model gives."""
        return self.timed("edge", self.model.run_edge, tensor)

    def run_head(self, cut: str, tensor: NDArray[Any]) -> Tensors:
        """The features at `cut`."""
        return self.timed("head", self.model.run_head, cut, tensor)

    def budget(self, seen: EdgeRun | None) -> Budget:
        """What is left, and what an answer by the edge would take of it: nothing once it is in hand."""
        reserve = self.model.reserve_s if seen is None else 0.0
        return Budget(self.deadline - time.monotonic(), reserve)


class JointInference:
    """Answers samples with the models in the slots and, where it helps, the cloud."""

    def __init__(
        self,
        slots: ModelSlots,
        cloud: Cloud | None,
        metrics: Metrics,
        executor: Executor,
        *,
        payload: Payload,
        max_pixels: int,
        max_inflight: int,
    ) -> None:
        """`executor` runs models and decodes images; `payload` is what goes up for an image."""
        self._slots = slots
        self._cloud = cloud
        self._metrics = metrics
        self._executor = executor
        self._payload = payload
        self._max_pixels = max_pixels
        self._max_inflight = max_inflight
        self._inflight = 0

    async def infer(self, ask: Ask) -> Answer:
        """Answer one sample within its deadline, and count it.

        Raises `InvalidInput`, `ModelNotFound`, `TooLarge`, `Overloaded` or `ModelError`; the cloud's
        failures never come out of here.
        """
        if self._inflight >= self._max_inflight:
            raise Overloaded(
                f"{self._inflight} samples are being answered, the limit is {self._max_inflight}"
            )
        self._inflight += 1
        try:
            with self._metrics.inflight.track_inprogress():
                answer = await self._infer(_settle(ask, self._slots.get(ask.model, ask.version)))
        finally:
            self._inflight -= 1
        self._metrics.record(answer.outcome)
        return answer

    async def _infer(self, request: _Request) -> Answer:
        tensor, seen = await self._run(self._look, request)
        confidence = None if seen is None else request.model.calibrated(seen.logits)[1]
        decision = policy.decide(
            request.mode, confidence, request.threshold, request.budget(seen),
            has_cloud=self._cloud is not None,
        )  # fmt: skip
        bytes_up = 0
        if decision.route is not Route.EDGE and self._cloud is not None:
            try:
                query = await self._query(self._cloud, request, tensor, seen, decision.route)
                answer = await self._ask(self._cloud, request, query, request.budget(seen).cloud_s)
                return _by_cloud(request, decision, answer, seen)
            except CloudUnavailable as error:
                decision = Decision(Route.EDGE, error.reason, degraded=True)
                bytes_up = error.bytes_up
        if seen is None:
            seen = await self._run(request.run_edge, tensor)
        return _by_edge(request, decision, seen.logits, bytes_up)

    def _look(self, request: _Request) -> tuple[NDArray[Any], EdgeRun | None]:
        """The input tensor, and what the edge model gives where the mode wants that first."""
        sample, manifest = request.ask.sample, request.model.manifest
        if isinstance(sample, bytes):
            if manifest.preprocess is None:
                raise InvalidInput(f"model {manifest.model!r} takes tensors, not images")
            tensor: NDArray[Any] = request.timed(
                "preprocess", manifest.preprocess.tensor, sample, self._max_pixels
            )
        else:
            tensor = sample
            request.model.edge.check({manifest.input.name: tensor})
        first = policy.edge_first(request.mode, request.cut, manifest.edge_variant.cut)
        return tensor, request.run_edge(tensor) if first else None

    async def _query(
        self, cloud: Cloud, request: _Request, tensor: NDArray[Any], seen: EdgeRun | None, route: Route
    ) -> Query:
        """What goes up: the features at the cut, the image as it came, or the input tensor."""
        cloud.check()
        manifest, sample = request.model.manifest, request.ask.sample
        name, inputs = manifest.model, {manifest.input.name: tensor}
        original = sample if isinstance(sample, bytes) else None
        if route is Route.FEATURES and request.cut is not None:
            name = f"{name}.tail.{request.cut}"
            # In a split the edge model has only run where it exits at this very cut.
            inputs = seen.features if seen else await self._run(request.run_head, request.cut, tensor)
        elif original is not None and policy.send_original(self._payload, len(original), tensor.nbytes):
            name, inputs = f"{name}.image", {"image": np.array([original], dtype=object)}
        self._metrics.escalated(manifest.model, route)
        parameters: dict[str, Parameter] = {"tandem_bundle": request.model.digest}
        return Query(request.id, name, manifest.version, inputs, parameters, manifest.output)

    async def _ask(self, cloud: Cloud, request: _Request, query: Query, timeout_s: float) -> CloudAnswer:
        started = time.perf_counter()
        try:
            return await cloud.infer(query, timeout_s)
        finally:
            request.timings_ms["cloud"] = (time.perf_counter() - started) * 1000

    async def _run(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


def _settle(ask: Ask, model: LoadedModel) -> _Request:
    """Fill in from the model's settings what the ask leaves open; `InvalidInput` where it cannot be."""
    wants, defaults = ask.wants, model.defaults
    mode = wants.mode or defaults.mode
    cut = wants.cut or (defaults.cut if mode is Mode.SPLIT else None)
    deadline_ms = wants.deadline_ms or defaults.deadline_ms
    threshold = defaults.threshold if wants.threshold is None else wants.threshold
    if mode is None or deadline_ms is None or threshold is None:
        raise RuntimeError(f"the settings of model {model.name!r} are not complete")
    return _Request(
        ask,
        ask.id or uuid.uuid4().hex,
        model,
        mode,
        policy.check_mode(mode, cut, model.cuts),
        threshold,
        ask.arrived + deadline_ms / 1000,
    )


def _by_edge(request: _Request, decision: Decision, logits: Logits, bytes_up: int) -> Answer:
    probabilities, confidence = request.model.calibrated(logits)
    labels = request.model.manifest.labels
    prediction = rank(probabilities, labels, request.ask.top_k)
    return Answer(
        Outcome(
            source=Source.EDGE_FALLBACK if decision.degraded else Source.EDGE,
            prediction=prediction,
            edge=EdgeAnswer(prediction.label, prediction.index, confidence),
            bytes_up=bytes_up,
            bytes_down=0,
            **_common(request, decision),
        ),
        logits,
    )


def _by_cloud(request: _Request, decision: Decision, answer: CloudAnswer, seen: EdgeRun | None) -> Answer:
    labels = request.model.manifest.labels
    edge = None
    if seen is not None:
        probabilities, confidence = request.model.calibrated(seen.logits)
        own = rank(probabilities, labels, 1)
        edge = EdgeAnswer(own.label, own.index, confidence)
    for stage in ("decode", "queue", "infer"):
        value = answer.parameters.get(f"tandem_{stage}_ms")
        if isinstance(value, float):
            request.timings_ms[f"cloud_{stage}"] = value
    return Answer(
        Outcome(
            source=Source.CLOUD,
            prediction=rank(softmax(answer.logits[0]), labels, request.ask.top_k),
            edge=edge,
            bytes_up=answer.bytes_up,
            bytes_down=answer.bytes_down,
            **_common(request, decision),
        ),
        answer.logits,
    )


def _common(request: _Request, decision: Decision) -> dict[str, Any]:
    """The fields of an outcome that do not depend on who answered; ends the request's time."""
    model = request.model
    request.timings_ms["total"] = (time.monotonic() - request.ask.arrived) * 1000
    return {
        "id": request.id,
        "reason": decision.reason,
        "degraded": decision.degraded,
        "mode": request.mode,
        "cut": request.cut,
        "threshold": request.threshold,
        "model": ModelRef(model.name, model.manifest.version, model.digest),
        "timings_ms": {stage: round(ms, 3) for stage, ms in request.timings_ms.items()},
    }
