"""Every error that Tandem raises on purpose, as one tree.

    TandemError
      InvalidInput          the caller's fault
        ModelNotFound       no such model, version or cut
        TooLarge            over a limit of size
        Unauthenticated     no key or certificate that is known here
        Forbidden           known, but not allowed to do this
        TooSlow             the body did not arrive in the time that it has
      Overloaded            try again later
        NotReady            the models are still loading, or the service is stopping
        RateLimited         this caller has used up what it may ask for
      ModelError            a model cannot be loaded or run
        VersionMismatch     the model is here, that version of it is not
      CloudUnavailable      the cloud's fault: the edge answers by itself
        CloudUnreachable    refused, reset, not connected
        DeadlineExceeded    no answer in time
        CloudRefused        an answer, but not one that can be used
        BreakerOpen         not asked, because it has been failing
        Throttled           not asked, because it has been turning many down
        AllowanceSpent      not asked, because the node has escalated as much as it may
        SwitchedOff         not asked, because somebody has switched escalation off
        LinkLost            not asked, because what was sent last is overdue
        LinkTooSlow         not asked, because the answer would be late
      BundleError           an untrusted or broken bundle: not served

The classes say what the receiver may do about it. Status codes live in one table per transport, not on
the classes: `HTTP_STATUS` and `GRPC_STATUS` below, by name and number, so that nothing here knows either
transport. Calls made out of order inside the program are `RuntimeError`, not one of these.
"""

from collections.abc import Mapping
from typing import ClassVar


class TandemError(Exception):
    """Base of the tree; `str()` of it is a sentence that may be shown to the caller."""


class InvalidInput(TandemError):
    """The request cannot be answered as it stands; the message names the field, value and limit."""


class ModelNotFound(InvalidInput):
    """The request names a model, version or cut that is not served here."""


class TooLarge(InvalidInput):
    """The request, or what it decodes to, is over a limit of size."""


class Unauthenticated(InvalidInput):
    """The caller shows no key or certificate, or none that is known here."""


class Forbidden(InvalidInput):
    """The caller is known, and is not allowed to do what it asks for."""


class TooSlow(InvalidInput):
    """The request's body did not arrive in the time that it has."""


class Overloaded(TandemError):
    """There is no room for the request now; it may be sent again after `retry_after_s` seconds.

    `why` is a word of a bounded set, for the metrics.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0, why: str = "full") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.why = why


class NotReady(Overloaded):
    """The service is there, but its models are not: it is still loading, or stopping."""


class RateLimited(Overloaded):
    """This caller has asked for as much as it may; others are answered."""


class ModelError(TandemError):
    """ONNX Runtime could not load or run a model, or its output has an unexpected form."""


class VersionMismatch(ModelError):
    """The model is served here, but not in the version, or not from the bundle, asked for."""


class CloudUnavailable(TandemError):
    """The cloud gave no usable answer. Never reaches the device: the edge answers instead.

    `reason` is what the Outcome and the metrics say happened; a bounded set of words. `bytes_up` is what
    had been handed to the link by then; `stated` whether it was the cloud itself that said no.
    """

    reason: str = "cloud_unreachable"
    bytes_up: int = 0
    stated: bool = False


class CloudUnreachable(CloudUnavailable):
    """There is no connection to the cloud, or it broke during the call."""


class DeadlineExceeded(CloudUnavailable):
    """The cloud did not answer within the time the request had left."""

    reason = "deadline"


class CloudRefused(CloudUnavailable):
    """The cloud answered, with a refusal or with something that cannot be used."""

    REASONS: ClassVar[frozenset[str]] = frozenset(
        {
            "overloaded",
            "too_large",
            "version_mismatch",
            "model_missing",
            "input_refused",
            "unauthorized",
            "cloud_error",
            "invalid_answer",
        }
    )

    def __init__(self, message: str, reason: str) -> None:
        if reason not in self.REASONS:
            raise RuntimeError(f"unknown reason {reason!r}")
        super().__init__(message)
        self.reason = reason


class BreakerOpen(CloudUnavailable):
    """The cloud has been failing and is left alone for a moment."""

    reason = "breaker_open"


class Throttled(CloudUnavailable):
    """The cloud has been turning many down, so that this one was not even sent."""

    reason = "throttled"


class AllowanceSpent(CloudUnavailable):
    """The node has escalated as much as its settings allow for now."""

    reason = "escalation_budget"


class SwitchedOff(CloudUnavailable):
    """Escalation has been switched off by whoever operates the node."""

    reason = "switched_off"


class LinkLost(CloudUnavailable):
    """What was sent last is overdue, and nothing has been heard since: nothing more is sent."""

    reason = "link_lost"


class LinkTooSlow(CloudUnavailable):
    """By no way that there is would an answer be in time, as the link is now."""

    reason = "link_slow"


class BundleError(TandemError):
    """A bundle that is untrusted, incomplete or broken; the message names the file and the rule."""


MAX_WORDS = 400  # characters of a message to a caller, at most
_GAP = " [...] "

HTTP_STATUS: Mapping[type[TandemError], int] = {
    InvalidInput: 400,
    ModelNotFound: 404,
    TooLarge: 413,
    Unauthenticated: 401,
    Forbidden: 403,
    TooSlow: 408,
    Overloaded: 503,
    RateLimited: 429,
    VersionMismatch: 404,
    DeadlineExceeded: 504,
    TandemError: 500,
}

GRPC_STATUS: Mapping[type[TandemError], str] = {
    InvalidInput: "INVALID_ARGUMENT",
    ModelNotFound: "NOT_FOUND",
    TooLarge: "RESOURCE_EXHAUSTED",
    Unauthenticated: "UNAUTHENTICATED",
    Forbidden: "PERMISSION_DENIED",
    TooSlow: "DEADLINE_EXCEEDED",
    Overloaded: "RESOURCE_EXHAUSTED",
    NotReady: "UNAVAILABLE",
    VersionMismatch: "FAILED_PRECONDITION",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    TandemError: "INTERNAL",
}


def shortened(words: str) -> str:
    """`words` for a caller who may have sent a part of them: of long ones the beginning, which names the
    field, and the end, which names the limit."""
    if len(words) <= MAX_WORDS:
        return words
    half = (MAX_WORDS - len(_GAP)) // 2
    return words[:half] + _GAP + words[-half:]


def http_status(error: TandemError) -> int:
    """The HTTP status code for `error`: that of the nearest class in the tree that has one."""
    return next(HTTP_STATUS[c] for c in type(error).__mro__ if c in HTTP_STATUS)


def grpc_status(error: TandemError) -> str:
    """The name of the gRPC status for `error`: that of the nearest class that has one."""
    return next(GRPC_STATUS[c] for c in type(error).__mro__ if c in GRPC_STATUS)
