"""Models that take something else than their tensors, and what makes these of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inference_core import codec
from inference_core.engine import TensorSpec
from inference_core.errors import InvalidInput
from inference_core.manifest import TensorInfo
from inference_core.preprocess import Preprocess
from inference_core.tensors import Tensors, from_bytes

IMAGE = "image"


class Decoder(Protocol):
    """What stands before an engine."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call must bring."""

    def decode(self, inputs: Tensors) -> Tensors:
        """The engine's inputs. Raises `InvalidInput` or `TooLarge`."""


@dataclass(frozen=True)
class Images:
    """How a model that takes encoded images makes the tensor `input_name` of them."""

    rules: Preprocess
    input_name: str
    max_pixels: int
    max_images: int

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """One axis of images."""
        return (TensorSpec(IMAGE, "BYTES", (-1,)),)

    def decode(self, inputs: Tensors) -> Tensors:
        """The input tensor for `{"image": BYTES[n]}`; `InvalidInput` or `TooLarge` for a bad image."""
        if inputs.keys() != {IMAGE} or inputs[IMAGE].dtype != object or inputs[IMAGE].ndim != 1:
            raise InvalidInput(f"this model takes one input, {IMAGE!r}: BYTES of shape [-1]")
        images = inputs[IMAGE]
        if not 1 <= len(images) <= self.max_images:
            raise InvalidInput(f"{len(images)} images in one request, the limits are 1 and {self.max_images}")
        rows = [self.rules.tensor(image, self.max_pixels) for image in images]
        return {self.input_name: np.concatenate(rows)}


@dataclass(frozen=True)
class Packed:
    """How a tail takes the features at its cut, the tensors `boundary`, each of one sample and packed."""

    boundary: Sequence[TensorInfo]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """One packed tensor for each of the boundary."""
        return tuple(TensorSpec(tensor.name, "BYTES", (1,)) for tensor in self.boundary)

    def decode(self, inputs: Tensors) -> Tensors:
        """The features; `InvalidInput` for others than these, or when they do not unpack to their size."""
        names = {tensor.name for tensor in self.boundary}
        fits = all(array.dtype == object and array.shape == (1,) for array in inputs.values())
        if inputs.keys() != names or not fits:
            raise InvalidInput(f"this model takes {', '.join(sorted(names))} packed: BYTES of shape [1]")
        tensors = {}
        for tensor in self.boundary:
            data = codec.unpack(inputs[tensor.name][0], tensor.bytes)
            tensors[tensor.name] = from_bytes(tensor.name, tensor.datatype, (1, *tensor.shape), data)
        return tensors
