"""Trial runs: whether a model runs at all, row by row, and answers as it did before it was changed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_core.confidence import softmax
from inference_core.errors import ModelError
from inference_core.manifest import TensorInfo
from inference_core.qualify import qualify
from inference_core.tensors import DATATYPES

_ROWS = 3
_TOLERANCE = 1e-3  # of the largest logit, between the model as it came and as it is used


@dataclass(frozen=True)
class Trial:
    """Runs of the model `name` with the input `info`, in other processes.

    `fixed` is the batch size that it came with, 0 for any.
    """

    name: str
    info: TensorInfo
    fixed: int

    def first(self, model: bytes) -> NDArray[Any]:
        """What `model`, as it came, answers to the first rows, as many as it takes.

        Raises `ModelError` when it cannot be run, has no batch axis or is no classifier.
        """
        rows = self._rows()[: self.fixed or None]
        ((output, logits),) = qualify(model, {self.info.name: rows}, name=self.name).outputs.items()
        _check_answers(output, logits, len(rows))
        return logits

    def last(self, data: bytes, answers: NDArray[Any], *, stripped: bool) -> TensorInfo:
        """The output of `data`, the model as it will be used, whose answers were `answers`.

        With `stripped`, `data` lacks the Softmax that made them. Raises `ModelError` when answers depend on
        the batch, differ from `answers` or are not finite.
        """
        rows = self._rows()
        ((output, logits),) = qualify(data, {self.info.name: rows}, name=self.name).outputs.items()
        _check_answers(output, logits, len(rows))
        at = len(rows) // 2  # in the middle: sums of the rows before or after reach it, too
        alone = qualify(data, {self.info.name: rows[at : at + 1]}, name=self.name).outputs[output]
        _compare(logits[at : at + 1], alone, "alone and in a batch; rows must not depend on each other")
        ours = softmax(logits) if stripped else logits
        _compare(ours[: len(answers)], answers, "before and after simplification")
        return TensorInfo(name=output, datatype="FP32", shape=(logits.shape[1],))

    def _rows(self) -> NDArray[Any]:
        return trial_rows(self.info, max(_ROWS, self.fixed))


def trial_rows(info: TensorInfo, count: int) -> NDArray[Any]:
    """Seeded rows `[count, ...]` that any model of this input can take: noise, or the ids 0 and 1."""
    rng = np.random.default_rng(0)
    dtype = DATATYPES[info.datatype]
    if dtype.kind == "f":
        return rng.standard_normal((count, *info.shape)).astype(dtype)
    return rng.integers(0, 2, (count, *info.shape)).astype(dtype)


def _check_answers(output: str, logits: NDArray[Any], rows: int) -> None:
    if logits.ndim != 2 or len(logits) != rows:
        raise ModelError(
            f"{rows} rows give an output {output!r} of shape {list(logits.shape)}, not [{rows}, classes]: "
            "there is no batch axis, or it is no classifier"
        )
    if logits.shape[1] < 2 or logits.dtype != np.float32:
        raise ModelError(
            f"output {output!r} is {logits.dtype} with {logits.shape[1]} classes, not FP32 with 2 or more"
        )
    if not np.isfinite(logits).all():
        raise ModelError(f"output {output!r} holds a NaN or an infinity when it is run on plain noise")


def _compare(ours: NDArray[Any], theirs: NDArray[Any], what: str) -> None:
    if ours.shape != theirs.shape:
        raise ModelError(f"the shapes {list(ours.shape)} and {list(theirs.shape)} differ {what}")
    most = float(np.abs(theirs).max(initial=1e-6))
    off = float(np.abs(ours - theirs).max(initial=0))
    if off > _TOLERANCE * most:
        raise ModelError(f"the answers to one input differ by {off:.3g} {what}")
