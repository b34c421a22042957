"""Finds the way up: knows the link and the models, and asks `routes` which way ends first.

Every escalation, whatever its mode, goes through `Navigator.ask` and teaches it.
"""

import random
import time
from collections.abc import Callable, Collection
from functools import partial

from edge_node.cloud import Cloud, CloudAnswer, Query
from edge_node.experience import Expected, Experience
from edge_node.link import Estimate, Link, Trip
from edge_node.model_slot import EdgeRun, LoadedModel
from edge_node.policy import Mode, Payload, Privacy
from edge_node.prober import Prober
from edge_node.request import Request
from edge_node.routes import Choice, Kind, Prospect, Sizes, Way, best, choose, edge_first, prospect, ways
from inference_core.errors import CloudUnavailable, DeadlineExceeded, LinkLost, LinkTooSlow
from inference_core.tensors import Tensors

_GONE = frozenset({"cloud_unreachable", "breaker_open"})
_MISSING_S = 60.0  # for which a cloud that does not unpack is not asked to
_LOOKED = 0.05  # share of the samples that the edge looks at where the cloud is quicker on the whole
_MOST_UNSURE = 0.8  # of the samples, as long as none was seen
_OVER_S = 0.001  # so that who gives up has waited long enough by any clock
_HOLD_S = 0.1  # for which it stays settled who looks first
_PREPROCESS_MS, _MODEL_MS = 0.3, 5.0  # where nothing was measured


class Navigator:
    """One node's knowledge of its way to the cloud, and of what each model takes."""

    def __init__(
        self,
        link: Link,
        *,
        payload: Payload,
        privacy: Privacy,
        prober: Prober | None = None,
        on_estimate: Callable[[Estimate], object] = id,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`on_estimate` is told of the link after each exchange; `draw` gives random numbers from 0 to 1."""
        self._link = link
        self._payload = payload
        self._privacy = privacy
        self._prober = prober
        self._on_estimate = on_estimate
        self._clock = clock
        self._draw = draw
        self._experience: dict[str, Experience] = {}
        self._edge_first: dict[str, tuple[float, bool]] = {}
        self._packs_from = 0.0

    def edge_first(self, request: Request) -> bool:
        """Whether the edge model runs before anything goes up."""
        model, now = request.model, self._clock()
        until, first = self._edge_first.get(model.digest, (0.0, True))
        if now < until:
            return first or self._draw() < _LOOKED  # or else nobody would ever know how sure the edge is
        experience = self._of(model)
        if self._link.lost(now):
            first = True
        else:
            budget = request.budget(None)
            nbytes = model.manifest.input.bytes
            after = best(self._prospects(request, nbytes, model.exits_at, now), budget.left_s)
            direct = best(self._prospects(request, nbytes, None, now), budget.cloud_s)
            first = edge_first(experience.edge_s.value, experience.escalated.value, after, direct)
        self._edge_first[model.digest] = now + _HOLD_S, first
        return first

    def choose(self, request: Request, nbytes: int, seen: EdgeRun | None) -> Way:
        """The way to take for a sample of `nbytes` as a tensor. Raises `CloudUnavailable` when none promises
        an answer in time."""
        now, model = self._clock(), request.model
        made = model.exits_at if seen else None
        prospects = self._prospects(request, nbytes, made, now)
        if self._prober is not None:
            self._prober.want(max((one.bytes_up for one in prospects), default=0))
        if self._link.lost(now):
            raise LinkLost("what was sent last is overdue, and nothing has been heard since")
        unheard = self._link.estimate(now).age == float("inf")
        choice = choose(
            prospects, request.budget(seen).cloud_s, draw=self._draw(), caution=0.0 if unheard else 1.0
        )
        _note(request, choice, now)
        if choice.taken is None:
            raise LinkTooSlow("by no way would an answer be in time")
        return choice.taken.way

    async def ask(self, cloud: Cloud, request: Request, query: Query, timeout_s: float) -> CloudAnswer:
        """The cloud's answer, and what there is to learn from it. In mode `auto` it is waited for until it is
        overdue, and no longer. Raises `CloudUnavailable`."""
        way, experience = request.way, self._of(request.model)
        payload = _size(query.inputs)
        expected_s = experience.cloud_s[way.model].value if way else 0.0
        trip = self._link.depart(self._clock(), round(payload + experience.overhead_bytes.value), expected_s)
        if request.mode is Mode.AUTO:
            timeout_s = min(timeout_s, trip.patience + _OVER_S)
        try:
            answer = await cloud.infer(query, timeout_s)
        except CloudUnavailable as error:
            self._failed(trip, way, error)
            raise
        except BaseException:
            self._link.abandon(trip)
            raise
        told = answer.cloud_s
        self._link.arrive(trip, self._clock(), answer.bytes_down, expected_s if told is None else told)
        self._learn(request, experience, payload, answer)
        self._on_estimate(self._link.estimate(self._clock()))
        return answer

    def seen(self, request: Request, run: EdgeRun) -> None:
        """The edge model has looked at a sample."""
        experience, ms = self._of(request.model), request.timings_ms
        experience.edge_s.add(ms["edge"] / 1000)
        experience.escalated.add(float(run.confidence < request.threshold))
        if "preprocess" in ms:
            experience.preprocess_s.add(ms["preprocess"] / 1000)

    def _failed(self, trip: Trip, way: Way | None, error: CloudUnavailable) -> None:
        now = self._clock()
        if isinstance(error, DeadlineExceeded):
            self._link.fail(trip, now)
        else:
            self._link.abandon(trip)
            if error.reason in _GONE:
                self._link.break_off(now)
        if error.reason == "model_missing" and way is not None and way.packed:
            self._packs_from = now + _MISSING_S

    def _learn(self, request: Request, experience: Experience, payload: int, answer: CloudAnswer) -> None:
        way = request.way
        experience.overhead_bytes.add(answer.bytes_up - payload)
        experience.answer_bytes.add(answer.bytes_down)
        if way is None:
            return
        if answer.cloud_s is not None:
            experience.cloud_s[way.model].add(answer.cloud_s)
        if way.cut in request.model.heads:
            experience.head_s[way.cut].add(request.made_s)
        if way.packed:
            cut = request.model.manifest.cut(way.cut)
            if cut is not None:
                experience.packed[way.cut].add(payload / cut.bytes)

    def _prospects(self, request: Request, nbytes: int, made: str | None, now: float) -> list[Prospect]:
        model, sample = request.model, request.ask.sample
        image = len(sample) if isinstance(sample, bytes) and self._payload is Payload.SMALLEST else None
        sizes = Sizes(image, nbytes, {cut.name: cut.bytes for cut in model.manifest.cuts})
        open_ways = ways(
            image=image is not None,
            cuts=[cut for cut in model.cuts if cut == made or cut in model.heads],
            packs=now >= self._packs_from,
            privacy=self._privacy,
        )
        experience = self._of(model)

        transfer = partial(self._link.transfer, now)
        return [prospect(way, sizes, experience, transfer, decoded=True, made=made) for way in open_ways]

    def keep(self, digests: Collection[str]) -> None:
        """Forget all bundles but these."""
        for digest in self._experience.keys() - set(digests):
            del self._experience[digest]
        for digest in self._edge_first.keys() - set(digests):
            del self._edge_first[digest]

    def _of(self, model: LoadedModel) -> Experience:
        experience = self._experience.get(model.digest)
        if experience is None:
            experience = self._experience[model.digest] = Experience(_expected(model))
        return experience


def _expected(model: LoadedModel) -> Expected:
    """What the bundle lets expect, measured on another machine."""
    manifest, threshold = model.manifest, model.defaults.threshold or 0.0
    full_ms = manifest.full.latency_ms or _MODEL_MS
    cloud_ms = {Kind.TENSOR.value: full_ms, Kind.IMAGE.value: full_ms + _PREPROCESS_MS}
    cloud_ms |= {f"{Kind.FEATURES}.{cut.name}": cut.tail_ms or full_ms for cut in manifest.cuts}
    points = [point.escalated for point in manifest.calibration.curve if point.threshold >= threshold]
    return Expected(
        _PREPROCESS_MS,
        manifest.edge_variant.latency_ms or _MODEL_MS,
        {cut.name: cut.head_ms or full_ms for cut in manifest.cuts},
        cloud_ms,
        min(points[0], _MOST_UNSURE) if points else 0.5,
    )


def _size(inputs: Tensors) -> int:
    """Bytes of the tensors as they go up."""
    return sum(
        sum(len(item) for item in array.flat) if array.dtype == object else array.nbytes
        for array in inputs.values()
    )


def _note(request: Request, choice: Choice, now: float) -> None:
    """Write down what was expected."""
    passed = now - request.ask.arrived
    request.prospects_ms = {str(one.way): round((passed + one.seconds) * 1000, 3) for one in choice.prospects}
    if choice.taken is not None:
        request.predicted_ms = request.prospects_ms[str(choice.taken.way)]
