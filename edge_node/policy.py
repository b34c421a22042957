"""Who answers a request, and what goes up. Pure: numbers in, a decision out."""

from dataclasses import dataclass
from enum import StrEnum

from inference_core.errors import InvalidInput


class Mode(StrEnum):
    """How a model's requests are answered; `docs/request-path.md` tells them apart."""

    EDGE = "edge"
    CLOUD = "cloud"
    CASCADE = "cascade"
    SPLIT = "split"
    AUTO = "auto"


class Payload(StrEnum):
    """What goes up for a request that came as an image."""

    SMALLEST = "smallest"
    TENSOR = "tensor"


class Privacy(StrEnum):
    """What may leave the edge: everything, features at a cut, or nothing."""

    ANY = "any"
    FEATURES = "features-only"
    NOTHING = "never-leaves-the-edge"


class Route(StrEnum):
    """Where the answer is to come from: here, or the cloud given the input or the features at a cut."""

    EDGE = "edge"
    INPUT = "input"
    FEATURES = "features"


class Source(StrEnum):
    """Whose answer the device gets."""

    EDGE = "edge"
    CLOUD = "cloud"
    EDGE_FALLBACK = "edge_fallback"


@dataclass(frozen=True, slots=True)
class Decision:
    """The route and why. `degraded` says that the policy wanted the cloud and cannot have it."""

    route: Route
    reason: str
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds: what the request has left, and what of it an answer by the edge alone would take."""

    left_s: float
    reserve_s: float

    @property
    def cloud_s(self) -> float:
        """What the cloud may take, so that an answer from here would still be in time."""
        return self.left_s - self.reserve_s


# Under this the call would only burn the cloud's time: a loopback round trip takes about as long.
LEAST_CLOUD_S = 0.001


def check_mode(mode: Mode, cut: str | None, cuts: tuple[str, ...]) -> str | None:
    """The cut that `mode` works with, or None. Raises `InvalidInput` for a pair that cannot be served."""
    if mode is not Mode.SPLIT:
        if cut is not None:
            raise InvalidInput(f"cut: only mode 'split' takes a cut, the mode is {mode.value!r}")
        return None
    if not cuts:
        raise InvalidInput("mode: 'split' needs a cut, and this model's bundle has none")
    if cut is None:
        return cuts[0]
    if cut not in cuts:
        raise InvalidInput(f"cut: {cut!r} is not one of {', '.join(cuts)}")
    return cut


def edge_first(mode: Mode, cut: str | None, exit_cut: str | None) -> bool:
    """Whether the edge model runs before anyone decides.

    In mode `split` it does where it exits early at the very cut of the request: it gives the features, too.
    """
    return mode in (Mode.EDGE, Mode.CASCADE) or (mode is Mode.SPLIT and cut is not None and cut == exit_cut)


def may_leave(privacy: Privacy, route: Route) -> bool:
    """Whether what `route` sends up may leave the node. The one place that says what privacy means: for
    requests by every mode and way, and for the samples that are kept and forwarded later."""
    if route is Route.INPUT:
        return privacy is Privacy.ANY
    return route is Route.EDGE or privacy is not Privacy.NOTHING


def may_stand_in(mode: Mode, privacy: Privacy) -> bool:
    """Whether the cloud may be given an input whose edge model has failed."""
    return mode not in (Mode.EDGE, Mode.SPLIT) and may_leave(privacy, Route.INPUT)


def decide(
    mode: Mode,
    confidence: float | None,
    threshold: float,
    budget: Budget,
    *,
    has_cloud: bool,
    privacy: Privacy = Privacy.ANY,
) -> Decision:
    """Where the answer comes from; in mode `auto` the route says that something goes up, and not yet what.

    `confidence` is the edge answer's, None when the edge model has not run; it is trusted from
    `threshold` on, save in mode `cloud`.
    """
    if mode is Mode.EDGE:
        return Decision(Route.EDGE, "mode")
    if mode is Mode.CLOUD:
        confidence = None
    if confidence is not None and confidence >= threshold:
        return Decision(Route.EDGE, "confident")
    if not has_cloud:
        return Decision(Route.EDGE, "no_cloud", degraded=True)
    # In mode `auto`, features are among the ways that there are.
    if not may_leave(privacy, Route.FEATURES if mode in (Mode.SPLIT, Mode.AUTO) else Route.INPUT):
        return Decision(Route.EDGE, "privacy", degraded=True)
    if budget.cloud_s < LEAST_CLOUD_S:
        return Decision(Route.EDGE, "budget", degraded=True)
    reason = "mode" if confidence is None else "low_confidence"
    return Decision(Route.FEATURES if mode is Mode.SPLIT else Route.INPUT, reason)


def send_original(payload: Payload, original_bytes: int | None, tensor_bytes: int) -> bool:
    """Whether the encoded image goes up instead of the tensor; `original_bytes` is None without one."""
    return payload is Payload.SMALLEST and original_bytes is not None and original_bytes <= tensor_bytes
