"""What a request came to: the same record in every API, in the metrics and in the tests."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_node.policy import Mode, Source
from inference_core.confidence import Row


@dataclass(frozen=True, slots=True)
class Ranked:
    """One class and its probability."""

    label: str
    index: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The winning class with its probability, and the most probable classes, best first."""

    label: str
    index: int
    confidence: float
    top_k: tuple[Ranked, ...]


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """What the edge model said, and the calibrated confidence that is held against the threshold."""

    label: str
    index: int
    confidence: float


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model answered: name, version, and the SHA-256 of its bundle's manifest."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who answered and why. Times are milliseconds, `bytes_up` and `bytes_down` the escalation's.

    `edge` is None when the edge model did not run. `degraded` is true when the answer is not what the
    mode wanted. `cut` is the split's, None for other modes. `way` is what went up where the cloud answered:
    `image`, `tensor`, `features.<cut>`, `features.<cut>.packed`. In mode `auto`, `predicted_ms` is when the
    answer was expected, and `prospects_ms` when by each way that there was, both from the arrival. `kept` is
    the key under which the sample lies in the outbox, on disk, where the request has asked for that.
    """

    id: str
    source: Source
    reason: str
    degraded: bool
    mode: Mode
    cut: str | None
    prediction: Prediction
    edge: EdgeAnswer | None
    threshold: float
    model: ModelRef
    timings_ms: dict[str, float]
    bytes_up: int
    bytes_down: int
    way: str | None = None
    predicted_ms: float | None = None
    prospects_ms: dict[str, float] = field(default_factory=dict)
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome with the logits behind its prediction: float32, shape `[1, classes]`."""

    outcome: Outcome
    logits: NDArray[np.float32]


def rank(probabilities: Row, labels: tuple[str, ...], top_k: int) -> Prediction:
    """The prediction for one row of probabilities; `top_k` beyond the number of classes means all."""
    ranked = tuple(Ranked(labels[i], i, float(probabilities[i])) for i in _order(probabilities, top_k))
    best = ranked[0]
    return Prediction(best.label, best.index, best.confidence, ranked)


def _order(probabilities: Row, top_k: int) -> list[int]:
    """The most probable classes, best first; of equals the first."""
    if isinstance(probabilities, list):
        classes = range(len(probabilities))
        if top_k == 1:
            return [max(classes, key=probabilities.__getitem__)]
        return sorted(classes, key=probabilities.__getitem__, reverse=True)[:top_k]
    order: list[int] = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return order
