"""The Open Inference Protocol without a transport: REST and gRPC both delegate to this."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge_node.joint import Ask, JointInference
from edge_node.model_slot import LoadedModel, ModelSlots
from edge_node.outcome import Answer, Outcome
from edge_node.settings import Preferences
from inference_core.engine import TensorSpec
from inference_core.errors import InvalidInput, ModelNotFound, NotReady
from inference_core.tensors import Parameter, Tensors

SERVER = "tandem-edge"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "tandem")
_PREFIX = "tandem_"


@dataclass(frozen=True)
class Metadata:
    """What the protocol says of a model; -1 stands for the free batch axis."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Inferred:
    """The outputs of one request, and its outcome as parameters."""

    model: str
    version: str
    id: str
    outputs: Tensors
    parameters: dict[str, Parameter]


class Dataplane:
    """Answers the protocol's questions from the slots and from joint inference."""

    def __init__(self, slots: ModelSlots, joint: JointInference, *, version: str, max_rows: int) -> None:
        self._slots = slots
        self._joint = joint
        self._max_rows = max_rows
        self.version = version

    @property
    def ready(self) -> bool:
        """Whether every model is loaded, warmed up and true to its golden outputs."""
        return self._slots.ready

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model, in this version, answers."""
        try:
            self._slots.get(name, version)
        except (ModelNotFound, NotReady):
            return False
        return self.ready

    def metadata(self, name: str, version: str = "") -> Metadata:
        """The model's inputs and outputs; `ModelNotFound`."""
        model = self._slots.get(name, version)
        output = model.manifest.output
        outputs = (TensorSpec(output.name, output.datatype, (-1, *output.shape)),)
        return Metadata(model.name, model.manifest.version, (model.input,), outputs)

    async def infer(
        self,
        name: str,
        version: str,
        request_id: str,
        inputs: Tensors,
        parameters: Mapping[str, Parameter],
        outputs: tuple[str, ...] = (),
    ) -> Inferred:
        """Answer every sample of the batch, each for itself: each has its own decision and outcome.

        `outputs` are the outputs asked for, empty for all. Raises what `JointInference.infer` raises, and
        `InvalidInput` for unknown outputs or parameters and for more samples than the limit.
        """
        arrived = time.monotonic()
        model = self._slots.get(name, version)
        wants = _preferences(parameters)
        batch = self._batch(model, inputs)
        for output in outputs:
            if output != model.manifest.output.name:
                raise InvalidInput(f"output {output!r}: the model has {model.manifest.output.name!r} only")
        asks = [Ask(name, row[None], arrived, version, request_id, wants) for row in batch]
        answers = await self._answers(asks)
        logits = np.concatenate([answer.logits for answer in answers])
        return Inferred(
            name,
            model.manifest.version,
            request_id or answers[0].outcome.id,
            {model.manifest.output.name: logits},
            _outcome_parameters(answers),
        )

    async def _answers(self, asks: list[Ask]) -> list[Answer]:
        """One answer for each ask; when one is refused, none of the others goes on or is counted."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._joint.infer(ask)) for ask in asks]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    def _batch(self, model: LoadedModel, inputs: Tensors) -> NDArray[Any]:
        model.edge.check(inputs)
        batch = inputs[model.manifest.input.name]
        model.input.check(batch)
        if not 1 <= len(batch) <= self._max_rows:
            raise InvalidInput(
                f"input {model.input.name!r}: {len(batch)} samples, the limits are 1 and {self._max_rows}"
            )
        return batch


def _preferences(parameters: Mapping[str, Parameter]) -> Preferences:
    """Those under `tandem_`; other parameters are other servers' business and ignored."""
    own = {key.removeprefix(_PREFIX): value for key, value in parameters.items() if key.startswith(_PREFIX)}
    for name, value in own.items():
        if isinstance(value, bool):  # would pass for the numbers 0 and 1
            raise InvalidInput(f"parameter {_PREFIX}{name}: must not be a boolean, got {value}")
    try:
        return Preferences.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        name = _PREFIX + ".".join(map(str, first["loc"]))
        raise InvalidInput(f"parameter {name}: {first['msg']}, got {first['input']!r}") from error


def _outcome_parameters(answers: list[Answer]) -> dict[str, Parameter]:
    """The outcome as parameters: plain for one sample; for more, texts with a comma between samples."""
    columns = [_columns(answer.outcome) for answer in answers]
    if len(columns) == 1:
        return columns[0]
    return {key: ",".join(_text(row[key]) for row in columns) for key in columns[0]}


def _columns(outcome: Outcome) -> dict[str, Parameter]:
    return {
        "tandem_source": outcome.source.value,
        "tandem_reason": outcome.reason,
        "tandem_degraded": outcome.degraded,
        "tandem_label": outcome.prediction.label,
        "tandem_confidence": outcome.prediction.confidence,
        "tandem_threshold": outcome.threshold,
        "tandem_bytes_up": outcome.bytes_up,
        "tandem_total_ms": outcome.timings_ms["total"],
    }


def _text(value: Parameter) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
