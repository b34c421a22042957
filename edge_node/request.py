"""A request on its way through joint inference: asked, settled, and in the end its outcome."""

import math
import time
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from numpy.typing import NDArray

from edge_node import policy
from edge_node.cloud import CloudAnswer
from edge_node.model_slot import EdgeRun, LoadedModel
from edge_node.outcome import Answer, EdgeAnswer, Outcome, rank
from edge_node.policy import Budget, Decision, Mode, Source
from edge_node.preferences import MAX_DEADLINE_MS, Wishes
from edge_node.routes import Way
from inference_core.confidence import Row, Scorer, judge
from inference_core.priority import Priority

MOST_MARGIN = 0.25  # of what a request has left
NO_PREFERENCES = Wishes()


@dataclass(frozen=True, slots=True)
class Ask:
    """One sample and what its sender wants of it.

    `model` is the one in the slot when the request came: it answers to the end, whatever is swapped in
    meanwhile. `sample` is an encoded image, or an input tensor with a first axis of 1 that the model's
    `check` has passed. `arrived` is the monotonic time, in seconds, at which the request came in: the
    deadline counts from there.
    """

    model: LoadedModel
    sample: bytes | NDArray[Any]
    arrived: float
    id: str = ""
    wants: Wishes = NO_PREFERENCES
    top_k: int = 5

    @property
    def wants_ms(self) -> int:
        """The milliseconds from its arrival to its deadline."""
        return self.wants.deadline_ms or self.model.defaults.deadline_ms or MAX_DEADLINE_MS


@dataclass(slots=True)
class Request:
    """An ask with every open question settled, and what has become of it so far.

    A run here that would end after `due` is not begun once it has waited, and one that takes far too long is
    not waited for after `patience`; `margin_s` is what an answer in hand may take until it is sent.
    `timings_ms` are the milliseconds of each stage. `way` is what went up, and `made_s` the seconds that it
    took to make; in mode `auto` it was expected to end `predicted_ms` after the arrival, and `prospects_ms`
    says the same of every way there was.
    """

    ask: Ask
    id: str
    model: LoadedModel
    mode: Mode
    cut: str | None
    threshold: float
    deadline: float
    priority: Priority = Priority.NORMAL
    due: float = math.inf
    margin_s: float = 0.0
    patience: float = math.inf
    timings_ms: dict[str, float] = field(default_factory=dict)
    way: Way | None = None
    made_s: float = 0.0
    predicted_ms: float | None = None
    prospects_ms: dict[str, float] = field(default_factory=dict)

    def took(self, stage: str, seconds: float) -> None:
        """Add `seconds` to the time of `stage`."""
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + seconds * 1000

    def budget(self, seen: EdgeRun | None) -> Budget:
        """What is left, and what an answer by the edge would take of it: a margin, a quarter of what is left
        at most, and the model's run where that is not in hand."""
        left = self.deadline - time.monotonic()
        margin = min(self.margin_s, left * MOST_MARGIN)
        return Budget(left, margin if seen is not None else self.model.reserve_s + margin)


def priority_of(ask: Ask) -> Priority:
    """The class of a request: its own word, else that of the model's settings."""
    return ask.wants.priority or ask.model.defaults.priority or Priority.NORMAL


def settle(ask: Ask, due: float = math.inf, margin_s: float = 0.0) -> Request:
    """Fill in from the model's settings what the ask leaves open; `InvalidInput` where it cannot be."""
    wants, model, defaults = ask.wants, ask.model, ask.model.defaults
    mode = wants.mode or defaults.mode
    cut = wants.cut or (defaults.cut if mode is Mode.SPLIT else None)
    deadline_ms = wants.deadline_ms or defaults.deadline_ms
    threshold = defaults.threshold if wants.threshold is None else wants.threshold
    if mode is None or deadline_ms is None or threshold is None:
        raise RuntimeError(f"the settings of model {model.name!r} are not complete")
    deadline = ask.arrived + deadline_ms / 1000
    return Request(
        ask,
        ask.id or token_hex(16),
        model,
        mode,
        policy.check_mode(mode, cut, model.cuts),
        threshold,
        deadline,
        priority_of(ask),
        due,
        margin_s,
        deadline,
    )


def by_edge(request: Request, decision: Decision, seen: EdgeRun, bytes_up: int) -> Answer:
    """The edge's answer; `bytes_up` were sent in vain."""
    source = Source.EDGE_FALLBACK if decision.degraded else Source.EDGE
    outcome = _outcome(request, decision, source, seen.probabilities, seen, (bytes_up, 0))
    return Answer(outcome, seen.logits)


def by_cloud(request: Request, decision: Decision, answer: CloudAnswer, seen: EdgeRun | None) -> Answer:
    """The cloud's answer, beside what the edge has `seen`."""
    for stage in ("decode", "queue", "infer"):
        value = answer.parameters.get(f"tandem_{stage}_ms")
        if isinstance(value, float):
            request.timings_ms[f"cloud_{stage}"] = value
    probabilities, _ = judge(answer.logits[0], 1.0, Scorer.MAX_PROBABILITY)
    sizes = (answer.bytes_up, answer.bytes_down)
    return Answer(_outcome(request, decision, Source.CLOUD, probabilities, seen, sizes), answer.logits)


def _outcome(
    request: Request,
    decision: Decision,
    source: Source,
    probabilities: Row,
    seen: EdgeRun | None,
    sizes: tuple[int, int],
) -> Outcome:
    """The record of what happened; ends the request's time. `sizes` are the bytes up and down."""
    model = request.model
    labels = model.manifest.labels
    prediction, edge = rank(probabilities, labels, request.ask.top_k), None
    if seen is not None:
        best = prediction if probabilities is seen.probabilities else rank(seen.probabilities, labels, 1)
        edge = EdgeAnswer(best.label, best.index, seen.confidence)
    request.took("total", time.monotonic() - request.ask.arrived)
    return Outcome(
        id=request.id,
        source=source,
        reason=decision.reason,
        degraded=decision.degraded,
        mode=request.mode,
        cut=request.cut,
        prediction=prediction,
        edge=edge,
        threshold=request.threshold,
        model=model.reference,
        timings_ms={stage: round(ms, 3) for stage, ms in request.timings_ms.items()},
        bytes_up=sizes[0],
        bytes_down=sizes[1],
        way=str(request.way) if request.way and source is Source.CLOUD else None,
        predicted_ms=request.predicted_ms,
        prospects_ms=request.prospects_ms,
    )
