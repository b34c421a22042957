"""What a request that cannot be answered is told: the same, whichever way it came in over HTTP."""

import logging
import math
from dataclasses import dataclass, field, replace

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_node.metrics import Metrics
from inference_core.errors import Overloaded, TandemError, Unauthenticated, http_status, shortened

_CLIENT_CLOSED = 499  # nginx's number for a client that hung up; nobody is left to read it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status, the text of `{"error": ...}` as the Open Inference Protocol has it, and further headers."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


class Refusals:
    """Makes errors into refusals and counts each once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def refuse(self, method: str, path: str, error: Exception) -> Refusal:
        """What the sender of this request is told; faults that are ours are logged, and not told."""
        made = _refusal(method, shortened(path), error)
        return self.count(path, replace(made, message=shortened(made.message)))

    def tell(self, path: str, status: int, message: str) -> Refusal:
        """The refusal that the sender of a request for `path` has been told already."""
        return self.count(path, Refusal(status, message))

    def count(self, path: str, refusal: Refusal) -> Refusal:
        """Count a refusal of a request for `path`."""
        api = "open_inference" if path.startswith("/v2") else "device"
        self._metrics.refused.labels(api, refusal.status).inc()
        return refusal


def _refusal(method: str, path: str, error: Exception) -> Refusal:
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        return Refusal(http_status(error), str(error), headers)
    if isinstance(error, Unauthenticated):
        return Refusal(http_status(error), str(error), {"WWW-Authenticate": 'Bearer realm="tandem"'})
    if isinstance(error, TandemError):
        status = http_status(error)
        if status < 500:
            return Refusal(status, str(error))
        _log.error("%s %s failed: %s", method, path, error)
        return Refusal(status, "the model failed; the service's log has the details")
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, f"{method} {path}: {error.detail}", dict(error.headers or {}))
    if isinstance(error, ClientDisconnect):
        return Refusal(_CLIENT_CLOSED, "the client hung up")
    _log.error("%s %s failed unexpectedly", method, path, exc_info=error)
    return Refusal(500, "internal error; the service's log has the details")
