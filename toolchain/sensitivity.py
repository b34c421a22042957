"""Mixed precision: which layers INT8 hurts most, and how few of them must stay in float."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxruntime.quantization import CalibrationMethod

from inference_core.errors import ModelError
from toolchain.progress import track
from toolchain.quantize import Quantizer

_MOST = 0.5  # of the layers, beyond which a model is not INT8 any more


@dataclass(frozen=True)
class Layer:
    """A node with weights, and what INT8 in it alone does: the mean absolute change of the logits."""

    name: str
    operator: str
    error: float


def rank_layers(
    quantizer: Quantizer, method: CalibrationMethod, error: Callable[[bytes], float]
) -> list[Layer]:
    """All layers that INT8 makes faster, the most sensitive first. `error` measures a model.

    A layer with which the model cannot be quantized or run has an error without bound.
    """
    found = []
    for name, operator in track(list(quantizer.layers().items()), "looking for sensitive layers"):
        try:
            measured = error(quantizer.quantize(method, only=[name]))
        except ModelError:
            measured = math.inf
        found.append(Layer(name, operator, measured if math.isfinite(measured) else math.inf))
    return sorted(found, key=lambda layer: -layer.error)


def spare_layers(
    quantizer: Quantizer,
    method: CalibrationMethod,
    ranked: Sequence[Layer],
    good: Callable[[bytes], bool],
) -> tuple[bytes, tuple[str, ...]] | None:
    """INT8 with the first 1, 2, 4 ... of `ranked` in float, as few as make the model `good`, and their names.

    The last that is tried is half of them. None when that is not enough.
    """
    most = int(_MOST * len(ranked))
    counts = [1 << power for power in range(most.bit_length())]
    for count in sorted({*counts, most} - {0}):
        names = tuple(layer.name for layer in ranked[:count])
        try:
            model = quantizer.quantize(method, without=names)
        except ModelError:
            continue
        if good(model):
            return model, names
    return None
