"""Joint inference: one sample in, one `Outcome` out, whoever answers it.

Top to bottom: take the model, look with the edge model where the mode says so, decide, ask the cloud where
that was the decision, and fall back to the edge's own answer when the cloud gives none.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_node import policy
from edge_node.admission import Admission, Place
from edge_node.cloud import Cloud, CloudAnswer, Query, can_be_asked
from edge_node.keeper import Keeper
from edge_node.link import Link
from edge_node.metrics import Metrics
from edge_node.model_slot import EdgeRun, features_of
from edge_node.navigator import Navigator
from edge_node.outcome import Answer
from edge_node.policy import Decision, Mode, Payload, Privacy, Route
from edge_node.request import Ask, Request, by_cloud, by_edge, settle
from edge_node.routes import Kind, Way, whole
from edge_node.runner import Runner
from edge_node.waiting import Timed
from inference_core import codec
from inference_core.errors import (
    CloudUnavailable,
    InvalidInput,
    ModelError,
    NotReady,
    Overloaded,
    TandemError,
)
from inference_core.preprocess import Preprocess, open_image
from inference_core.priority import PRIORITY, Priority
from inference_core.tensors import Parameter, Tensors

# An image of up to so many pixels is decoded on the loop, in about a millisecond; larger ones on the pool.
SMALL_IMAGE = 256 * 256


class JointInference:
    """Answers samples with the edge's models and, where it helps, the cloud."""

    def __init__(
        self,
        cloud: Cloud | None,
        metrics: Metrics,
        runner: Runner,
        decoders: Executor,
        *,
        navigator: Navigator | None = None,
        keeper: Keeper | None = None,
        payload: Payload,
        privacy: Privacy = Privacy.ANY,
        max_pixels: int,
        admission: Admission,
        reserve_s: float = 0.0,
        lag: Callable[[], float] = float,
    ) -> None:
        """`decoders` decodes the larger images; `payload` is what goes up for an image, where `privacy` lets
        anything. `navigator` finds the way in mode `auto`; `keeper` keeps what is worth learning from.
        `reserve_s` seconds, and what `lag()` says, the cloud does not get, for the answer to be in time."""
        self._cloud = cloud
        self._metrics = metrics
        self._runner = runner
        self._decoders = decoders
        self._payload = payload
        self._privacy = privacy
        self._navigator = navigator or Navigator(Link(), payload=payload, privacy=privacy)
        self._keeper = keeper
        self._max_pixels = max_pixels
        self._admission = admission
        self._reserve_s = reserve_s
        self._lag = lag
        metrics.add_admission(admission, runner)

    async def infer(self, ask: Ask) -> Answer:
        """Answer one sample within its deadline, and count it. Raises what `infer_all` raises."""
        (answer,) = await self.infer_all([ask])
        return answer

    async def infer_all(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer the samples of one request for one model, each for itself, in time and counted.

        When one is refused, none of the others goes on. Raises `InvalidInput`, `TooLarge`, `Overloaded` or
        `ModelError`; the cloud's failures never come out of here.
        """
        count, statistics = len(asks), asks[0].model.statistics
        place = self._admit(asks[0], count)
        try:
            answers = (
                [await self._answer(asks[0], place)] if count == 1 else await self._together(asks, place)
            )
        except Exception as error:
            if type(error) is Overloaded:
                self._admission.refused(asks[0], error, place)
            statistics.fail(time.monotonic() - asks[0].arrived)
            raise
        finally:
            self._admission.leave(count)
        # Of many samples, whose stages overlap, the one that took longest stands for the request.
        times = max((answer.outcome.timings_ms for answer in answers), key=itemgetter("total"))
        took = times.get
        away_ms = took("cloud", 0.0) + took("keep", 0.0)  # where others wait for nothing of ours
        here_s, queue_s = (took("total", 0.0) - away_ms) / 1000, took("queue", 0.0) / 1000
        self._admission.answered(asks[0], place, queue_s, here_s)
        statistics.success(
            count,
            took("total", 0.0) / 1000,
            took("queue", 0.0) / 1000,
            took("preprocess", 0.0) / 1000,
            (took("edge", 0.0) + took("cloud", 0.0)) / 1000,
            0.0,
        )
        return answers

    def _admit(self, ask: Ask, count: int) -> Place:
        """Room for `count` samples, all or none; `Overloaded`."""
        try:
            return self._admission.admit(ask, count, goes_up=self._goes_up(ask))
        except Overloaded as error:
            self._admission.refused(ask, error)
            raise

    def _goes_up(self, ask: Ask) -> bool:
        """Whether the cloud is asked before any run here: not where it is known that it cannot be."""
        mode = ask.wants.mode or ask.model.defaults.mode
        if self._cloud is None or mode is not Mode.CLOUD or not policy.may_leave(self._privacy, Route.INPUT):
            return False
        return can_be_asked(self._cloud, ask.wants_ms / 1000)

    async def _together(self, asks: Sequence[Ask], place: Place) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answer(ask, place)) for ask in asks]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _answer(self, ask: Ask, place: Place) -> Answer:
        request = settle(ask, place.due, self._reserve_s + self._lag())
        answer = await self._infer(request)
        if self._keeper is not None:
            answer = await self._keeper.keep(request, answer)
        self._metrics.record(answer.outcome)
        return answer

    async def _infer(self, request: Request) -> Answer:
        tensor = await self._tensor(request)
        seen = None
        if self._edge_first(request):
            request.patience = self._patience(request)
            try:
                seen = await self._run_edge(request, tensor)
            except (ModelError, NotReady) as error:
                return await self._instead(request, tensor, error)
            request.patience = request.deadline
        decision = policy.decide(
            request.mode, seen.confidence if seen else None, request.threshold, request.budget(seen),
            has_cloud=self._cloud is not None, privacy=self._privacy,
        )  # fmt: skip
        bytes_up = 0
        if decision.route is not Route.EDGE and self._cloud is not None:
            try:
                answer = await self._by_cloud(self._cloud, request, tensor, seen, decision.route)
                return by_cloud(request, decision, answer, seen)
            except CloudUnavailable as error:
                decision = Decision(Route.EDGE, error.reason, degraded=True)
                bytes_up = error.bytes_up
            except (ModelError, NotReady, Overloaded):
                if seen is None:
                    raise
                decision = Decision(Route.EDGE, "head_failed", degraded=True)
        if seen is None:
            seen = await self._run_edge(request, tensor)
        return by_edge(request, decision, seen, bytes_up)

    async def _instead(self, request: Request, tensor: NDArray[Any], error: TandemError) -> Answer:
        """The cloud's answer where the edge model has failed and the input may go up; else `error`."""
        cloud = self._stand_in(request)
        if cloud is None:
            raise error
        try:
            answer = await self._by_cloud(cloud, request, tensor, None, None)
        except CloudUnavailable:
            raise error from None
        return by_cloud(request, Decision(Route.INPUT, "edge_failed", degraded=True), answer, None)

    def _stand_in(self, request: Request) -> Cloud | None:
        """The cloud, where the mode lets it answer instead of an edge model that fails."""
        return self._cloud if policy.may_stand_in(request.mode, self._privacy) else None

    def _patience(self, request: Request) -> float:
        """Until when a run that does not end is waited for: half of the time where the cloud can stand in."""
        now, cloud = time.monotonic(), self._stand_in(request)
        alone = cloud is None or not can_be_asked(cloud, (request.deadline - now) / 2)
        return request.deadline if alone else (now + request.deadline) / 2

    def _edge_first(self, request: Request) -> bool:
        if request.mode is Mode.AUTO:
            return self._cloud is None or self._navigator.edge_first(request)
        return policy.edge_first(request.mode, request.cut, request.model.exits_at)

    async def _tensor(self, request: Request) -> NDArray[Any]:
        """The sample as the model's input tensor. Raises `InvalidInput` or `TooLarge`."""
        sample, manifest = request.ask.sample, request.model.manifest
        if not isinstance(sample, bytes):
            return sample
        if manifest.preprocess is None:
            raise InvalidInput(f"model {manifest.model!r} takes tensors, not images")
        started = time.perf_counter()
        tensor = await self._decoded(manifest.preprocess, sample)
        request.took("preprocess", time.perf_counter() - started)
        return tensor

    async def _decoded(self, rules: Preprocess, sample: bytes) -> NDArray[np.float32]:
        image = open_image(sample, self._max_pixels)
        if image.width * image.height <= SMALL_IMAGE:
            return rules.convert(image)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, rules.convert, image)

    async def _run_edge(self, request: Request, tensor: NDArray[Any]) -> EdgeRun:
        """What the edge model says."""
        seen = request.model.read(await self._run(request, "edge", request.model.edge, tensor))
        self._navigator.seen(request, seen)
        return seen

    async def _run(self, request: Request, stage: str, model: Timed, tensor: NDArray[Any]) -> Tensors:
        run = await self._runner.run(
            model,
            {request.model.manifest.input.name: tensor},
            deadline=request.due,
            priority=request.priority,
            # Who has waited for the cloud in vain has waited enough.
            at_once="cloud" in request.timings_ms,
            patience=request.patience,
        )
        request.took(stage, run.seconds)
        if run.queue_s:
            request.took("queue", run.queue_s)
        return run.outputs

    async def _by_cloud(
        self, cloud: Cloud, request: Request, tensor: NDArray[Any], seen: EdgeRun | None, route: Route | None
    ) -> CloudAnswer:
        """The cloud's answer by the way that the mode wants; without a route, by one without a run here."""
        cloud.check(request.budget(seen).cloud_s)
        way = self._way(request, tensor, seen, route)
        request.way = way
        began = time.perf_counter()
        name, inputs = await self._inputs(request, way, tensor, seen)
        request.made_s = time.perf_counter() - began
        self._metrics.escalated(request.model.name, Route.FEATURES if way.cut else Route.INPUT)
        manifest = request.model.manifest
        parameters: dict[str, Parameter] = {"tandem_bundle": request.model.digest}
        if request.priority is not Priority.NORMAL:
            parameters[PRIORITY] = request.priority.value
        query = Query(request.id, name, manifest.version, inputs, parameters, manifest.output)
        started = time.perf_counter()
        self._admission.away += 1
        try:
            return await self._navigator.ask(cloud, request, query, request.budget(seen).cloud_s)
        except CloudUnavailable as error:
            if error.reason != "model_missing" or not way.packed or request.mode is not Mode.AUTO:
                raise
        finally:
            self._admission.away -= 1
            request.took("cloud", time.perf_counter() - started)
        return await self._by_cloud(cloud, request, tensor, seen, route)  # now without packed ways

    def _way(self, request: Request, tensor: NDArray[Any], seen: EdgeRun | None, route: Route | None) -> Way:
        """What goes up."""
        if request.mode is Mode.AUTO and route is not None:
            return self._navigator.choose(request, tensor.nbytes, seen)
        if route is Route.FEATURES and request.cut is not None:
            return Way(Kind.FEATURES, request.cut)
        return whole(self._payload, request.ask.sample, tensor.nbytes)

    async def _inputs(
        self, request: Request, way: Way, tensor: NDArray[Any], seen: EdgeRun | None
    ) -> tuple[str, Tensors]:
        """The name of the cloud's model, and the tensors that it takes."""
        manifest = request.model.manifest
        if way.kind is Kind.TENSOR:
            return manifest.model, {manifest.input.name: tensor}
        if way.kind is Kind.IMAGE:
            return f"{manifest.model}.image", {"image": np.array([request.ask.sample], dtype=object)}
        head = request.model.heads.get(way.cut)
        # At the cut where the edge model exits there is no head: its features are in hand.
        features = await self._run(request, "head", head, tensor) if head else features_of(seen)
        if way.packed:
            return f"{manifest.model}.packed.{way.cut}", codec.packed(features)
        return f"{manifest.model}.tail.{way.cut}", features
