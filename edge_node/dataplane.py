"""The Open Inference Protocol without a transport: REST and gRPC both delegate to this."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge_node.descriptions import create_catalogue
from edge_node.joint import JointInference
from edge_node.model_slot import LoadedModel, ModelSlots
from edge_node.outcome import Answer, Outcome
from edge_node.preferences import Wishes
from edge_node.request import NO_PREFERENCES, Ask
from inference_core.classification import check_outputs, select
from inference_core.errors import InvalidInput, TandemError
from inference_core.tensors import Parameter, Tensors

_PREFIX = "tandem_"


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
        self.catalogue = create_catalogue(slots, version, max_rows)

    async def infer(
        self,
        name: str,
        version: str,
        request_id: str,
        inputs: Tensors,
        parameters: Mapping[str, Parameter],
        outputs: Mapping[str, int],
        arrived: float,
    ) -> Inferred:
        """Answer every sample of the batch, each for itself: each has its own decision and outcome.

        `outputs` are the outputs asked for, empty for all, each with how many of its best classes it is to
        come as, 0 for the tensor itself; `arrived` is when the request came, monotonic and
        in seconds. Raises what `JointInference.infer` raises, and
        `InvalidInput` for unknown outputs or parameters and for more samples than the limit.
        """
        model = self._slots.get(name, version)
        try:
            wants = _preferences(parameters)
            batch = self._batch(model, inputs)
            check_outputs(outputs, (model.manifest.output.name,))
        except TandemError:
            model.statistics.fail(time.monotonic() - arrived)
            raise
        asks = [
            Ask(model, batch[row : row + 1], arrived, request_id, wants, top_k=1) for row in range(len(batch))
        ]
        answers = await self._joint.infer_all(asks)
        logits = [answer.logits for answer in answers]
        given = {model.manifest.output.name: logits[0] if len(logits) == 1 else np.concatenate(logits)}
        return Inferred(
            name,
            model.manifest.version,
            request_id or answers[0].outcome.id,
            select(given, outputs, model.manifest.labels),
            _outcome_parameters(answers),
        )

    def _batch(self, model: LoadedModel, inputs: Tensors) -> NDArray[Any]:
        model.check(inputs)
        batch = inputs[model.manifest.input.name]
        if not 1 <= len(batch) <= self._max_rows:
            raise InvalidInput(
                f"input {model.input.name!r}: {len(batch)} samples in one request, "
                f"the limits are 1 and {self._max_rows}"
            )
        return batch


def _preferences(parameters: Mapping[str, Parameter]) -> Wishes:
    """Those under `tandem_`; other parameters are other servers' business and ignored."""
    own = {key.removeprefix(_PREFIX): value for key, value in parameters.items() if key.startswith(_PREFIX)}
    if not own:
        return NO_PREFERENCES
    for name, value in own.items():
        if isinstance(value, bool) and name != "keep":  # would pass for the numbers 0 and 1
            raise InvalidInput(f"parameter {_PREFIX}{name}: must not be a boolean, got {value}")
    try:
        return Wishes.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        name = _PREFIX + ".".join(map(str, first["loc"]))
        raise InvalidInput(f"parameter {name}: {first['msg']}, got {first['input']!r}") from error


def _outcome_parameters(answers: list[Answer]) -> dict[str, Parameter]:
    """The outcome as parameters: plain for one sample; for more, texts with a comma between samples."""
    columns = [_columns(answer.outcome) for answer in answers]
    if any(answer.outcome.kept for answer in answers):
        for row, answer in zip(columns, answers, strict=True):
            row["tandem_kept"] = answer.outcome.kept or ""
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
