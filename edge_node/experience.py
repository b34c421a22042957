"""What serving a model has taught: times of its stages, sizes, how often the edge is unsure.

Every figure begins with what the bundle or the protocol lets expect, and follows what is seen, the last
tens of requests the most. Pure: told of everything, asks nobody.
"""

from dataclasses import dataclass

_WEIGHT = 0.1  # of the newest of many
_TICK_S = 0.0005
_FIRST = 3  # what was expected beforehand counts as this many


class Average:
    """A mean that follows: the first values as in a plain mean, later ones with a fixed weight."""

    def __init__(self, expected: float) -> None:
        self.value = expected
        self._count = _FIRST

    def add(self, value: float) -> None:
        """One more value."""
        self._count += 1
        self.value += (value - self.value) * max(_WEIGHT, 1 / self._count)


class Duration(Average):
    """An average of seconds. One stall is no trend: a value counts as at most four times the mean."""

    def add(self, value: float) -> None:
        """One more duration."""
        super().add(min(value, 4 * self.value + _TICK_S))


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a model before it is used: milliseconds, bytes, shares."""

    preprocess_ms: float
    edge_ms: float
    head_ms: dict[str, float]
    cloud_ms: dict[str, float]
    escalated: float


class Experience:
    """The averages of one model; the cloud's times by what goes up: "image", "tensor", "features.<cut>"."""

    def __init__(self, expected: Expected) -> None:
        self.preprocess_s = Duration(expected.preprocess_ms / 1000)
        self.edge_s = Duration(expected.edge_ms / 1000)
        self.head_s = {cut: Duration(ms / 1000) for cut, ms in expected.head_ms.items()}
        self.cloud_s = {name: Duration(ms / 1000) for name, ms in expected.cloud_ms.items()}
        self.packed = {cut: Average(_PACKED) for cut in expected.head_ms}
        self.overhead_bytes = Average(_OVERHEAD_BYTES)
        self.answer_bytes = Average(_ANSWER_BYTES)
        self.escalated = Average(expected.escalated)


_PACKED = 0.6  # of the features' bytes, before any have been packed
_OVERHEAD_BYTES = 250.0  # of a message, around its tensors
_ANSWER_BYTES = 300.0
