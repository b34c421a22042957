"""What the Open Inference Protocol tells of a server and of its models, as the documents of its REST form.

The messages of its gRPC form have the same fields by the same names, so that one document makes both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from inference_core.engine import TensorSpec
from inference_core.errors import InvalidInput, ModelNotFound, NotReady, VersionMismatch
from inference_core.statistics import Statistics

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
# Of Triton's: the names by which clients find out what they may use.
EXTENSIONS = ("classification", "model_configuration", "statistics", "binary_tensor_data", "tandem")
_TYPES = {"BYTES": "TYPE_STRING"}


@dataclass(frozen=True)
class Description:
    """One model as clients see it.

    `max_batch_size` is how many samples one request may hold along the free first axis that all tensors
    share, 0 where they share none. `queue_delay_us` is how many microseconds a request may wait for others
    to be run with, None where requests are not run together.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    statistics: Statistics
    max_batch_size: int
    queue_delay_us: int | None = None


class Catalogue:
    """Answers the protocol's questions about a server, by asking it for its models each time."""

    def __init__(
        self,
        server: str,
        version: str,
        *,
        find: Callable[[str, str], Description],
        every: Callable[[], Sequence[Description]],
        ready: Callable[[], bool],
    ) -> None:
        """`server` and `version` are its name and its own version.

        `find` gives a model by name and version, where an empty version stands for whichever is served, or
        raises `ModelNotFound`, `VersionMismatch` or `NotReady`; `every` gives all models, by name, and
        `ready` says whether they answer.
        """
        self._server = server
        self._version = version
        self._find = find
        self._every = every
        self._ready = ready

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return self._ready()

    def server(self) -> dict[str, Any]:
        """The server's metadata."""
        return {"name": self._server, "version": self._version, "extensions": list(EXTENSIONS)}

    def health(self, name: str, version: str = "") -> tuple[dict[str, Any], bool]:
        """The document about the readiness of a model, and whether it answers now.

        Raises `ModelNotFound` or `VersionMismatch` for what will not answer later either.
        """
        try:
            self._find(name, version)
            ready = self.ready
        except NotReady:
            ready = False
        # The protocol's text has `live` here in one place and `ready` in another.
        return {"name": name, "ready": ready, "live": ready}, ready

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model, in this version, answers now."""
        try:
            return self.health(name, version)[1]
        except (ModelNotFound, VersionMismatch):
            return False

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's inputs and outputs, -1 for a free axis. Raises what `find` raises."""
        model = self._find(name, version)
        return {
            "name": model.name,
            "versions": [model.version],
            "platform": PLATFORM,
            "inputs": [_tensor(spec) for spec in model.inputs],
            "outputs": [_tensor(spec) for spec in model.outputs],
        }

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's configuration, as far as it means something here. Raises what `find` raises."""
        model = self._find(name, version)
        config: dict[str, Any] = {
            "name": model.name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "max_batch_size": model.max_batch_size,
            "input": [_dims(spec, model.max_batch_size) for spec in model.inputs],
            "output": [_dims(spec, model.max_batch_size) for spec in model.outputs],
        }
        if model.queue_delay_us is not None:
            config["dynamic_batching"] = {
                "preferred_batch_size": [],
                "max_queue_delay_microseconds": model.queue_delay_us,
            }
        return config

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """What a model has served, or every model for an empty name. Raises what `find` raises."""
        models = [self._find(name, version)] if name else self._every()
        return {
            "model_stats": [{"name": m.name, "version": m.version} | m.statistics.document() for m in models]
        }

    def index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """Every model with its state; with `only_ready`, those that answer now."""
        if only_ready and not self.ready:
            return []
        state, reason = ("READY", "") if self.ready else ("UNAVAILABLE", "stopping")
        return [
            {"name": model.name, "version": model.version, "state": state, "reason": reason}
            for model in self._every()
        ]


def only_ready(body: bytes) -> bool:
    """Whether a request for the index wants the models that are ready only. Raises `InvalidInput`."""
    try:
        asked = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"body: not JSON: {error}") from error
    wanted = asked.get("ready", False) if isinstance(asked, dict) else None
    if not isinstance(wanted, bool):
        raise InvalidInput("body: must be a JSON object, in which `ready` is true or false")
    return wanted


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _dims(spec: TensorSpec, max_batch_size: int) -> dict[str, Any]:
    """The tensor as a configuration names it: without the axis of samples, where there is one."""
    dims = spec.shape[1:] if max_batch_size else spec.shape
    return {
        "name": spec.name,
        "data_type": _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(dims),
    }
