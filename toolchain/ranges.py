"""The range of a tensor that travels as uint8."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper


@dataclass(frozen=True)
class Range:
    """`real = (stored - zero) * scale`, stored as uint8."""

    scale: float
    zero: int

    def store(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """`values` as they travel."""
        steps = np.rint(values / np.float32(self.scale)) + self.zero
        return np.asarray(steps.clip(0, 255), np.uint8)

    def restore(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the tail makes of them."""
        return np.asarray((stored.astype(np.float32) - self.zero) * np.float32(self.scale), np.float32)


Ranges = Mapping[str, Range]  # by the name of the feature tensor


def range_of(values: NDArray[Any], percentile: float) -> Range:
    """The range of `values` without the tails beyond `percentile` on either side; it holds 0."""
    low = min(0.0, float(np.percentile(values, 100 - percentile)))
    high = max(0.0, float(np.percentile(values, percentile)))
    scale = max(high - low, 1e-6) / 255
    return Range(float(np.float32(scale)), round(-low / scale))


def constants(name: str, rule: Range) -> list[TensorProto]:
    """Scale and zero point of the tensor `name`, as QuantizeLinear takes them."""
    return [
        numpy_helper.from_array(np.array(rule.scale, np.float32), f"{name}.scale"),
        numpy_helper.from_array(np.array(rule.zero, np.uint8), f"{name}.zero"),
    ]
