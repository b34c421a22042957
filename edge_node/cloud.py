"""The seam to whatever answers escalations: what goes up, what comes back, and the one call between.

`CloudClient` answers over gRPC; tests answer from memory.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from inference_core.errors import CloudUnavailable
from inference_core.manifest import TensorInfo
from inference_core.tensors import Parameter, Tensors


@dataclass(frozen=True, slots=True)
class Query:
    """One escalation: the model's name and version at the cloud, the tensors, and what must come back."""

    id: str
    model: str
    version: str
    inputs: Tensors
    parameters: dict[str, Parameter]
    expect: TensorInfo


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """The logits, float32 `[1, classes]`, what the cloud says of its stages, the message sizes, and the
    seconds from the making of the message to its answer."""

    logits: NDArray[Any]
    parameters: dict[str, Parameter]
    bytes_up: int
    bytes_down: int
    seconds: float = 0.0

    @property
    def cloud_s(self) -> float | None:
        """The seconds of `seconds` that the cloud had the request, as it says; None where it does not say, or
        says what cannot be."""
        told = self.parameters.get("tandem_total_ms")
        if isinstance(told, bool) or not isinstance(told, int | float):
            return None
        return told / 1000 if 0 <= told / 1000 <= self.seconds else None


class Attempt(StrEnum):
    """Why something is sent to a cloud: for a request, a second time for it, beside it, to find out whether
    a cloud that failed is well again, as a sign of life that asks for nothing, or for it to learn from."""

    FIRST = "first"
    RETRY = "retry"
    HEDGE = "hedge"
    TRIAL = "trial"
    PROBE = "probe"
    SAMPLE = "sample"


class Cloud(Protocol):
    """What answers escalations: the real one here, others in tests."""

    def check(self, timeout_s: float) -> None:
        """Raise `CloudUnavailable` when asking now, with so many seconds to wait, would be in vain; costs
        nothing."""

    async def infer(self, query: Query, timeout_s: float) -> CloudAnswer:
        """The cloud's answer within `timeout_s` seconds, else `CloudUnavailable`."""


def can_be_asked(cloud: Cloud, seconds: float) -> bool:
    """Whether the cloud may be asked by a request with so much time."""
    try:
        cloud.check(seconds)
    except CloudUnavailable:
        return False
    return True
