"""INT8 arithmetic for an FP32 ONNX model: static where ranges can be measured, dynamic where that pays.

Models are the bytes of an ONNX file, in and out; temporary files are gone when a function returns.
"""

import tempfile
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from inference_core.engine import Engine
from inference_core.errors import ModelError
from inference_core.tensors import Tensors
from toolchain.graph import fold, quiet
from toolchain.nodes import constants
from toolchain.progress import track

Samples = NDArray[Any]

METHODS = (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)
_CHUNK_ELEMENTS = 1 << 16  # of an input, about, that the calibration runs at once


class Quantizer(AbstractContextManager["Quantizer"]):
    """Static INT8 forms of one model, in QDQ form.

    Activations are U8, with ranges from `samples` (`[n, ...]`, as the model takes them), and weights S8
    per channel, what x86-64 multiplies fastest. Weights use 7 bits: with 8, CPUs without VNNI saturate
    their 16-bit sums and answer differently. Ranges are measured once for each method and kept in
    temporary files until the context ends.
    """

    def __init__(self, model: bytes, samples: Samples) -> None:
        self._folded = fold(model)
        self._unbounded = _unbounded(self._folded)
        self._samples = samples
        self._input = Engine(model, name="fp32").inputs[0].name
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-ranges-")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def quantize(
        self,
        method: CalibrationMethod,
        *,
        only: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> bytes:
        """The model in INT8, with ranges taken by `method`.

        `only` these nodes, by name, where given, and `without` those. Raises `ModelError` when the
        model cannot be quantized.
        """
        target = Path(self._folder.name) / "int8.onnx"
        ranges = Path(self._folder.name) / f"{method.name}.json"
        with quiet(), np.errstate(invalid="ignore"):  # ranges of masks, which are not used
            try:
                quantize_static(
                    onnx.load_from_string(self._folded),  # which the quantizer changes
                    target,
                    None if ranges.exists() else _Reader(self._input, self._samples),
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    reduce_range=True,
                    calibrate_method=method,
                    nodes_to_quantize=None if only is None else list(only),
                    nodes_to_exclude=[*without, *self._unbounded],
                    calibration_cache_path=ranges,
                    extra_options={"CalibStridedMinMax": 1},
                )
            except Exception as error:
                raise ModelError(f"the model cannot be quantized: {error}") from error
        return target.read_bytes()

    def best(self, fit: Callable[[bytes], tuple[float, ...]]) -> tuple[bytes, CalibrationMethod]:
        """The model in INT8, and how its ranges were taken: the first method with the largest `fit`.

        Methods that fail are left out. Raises `ModelError` when all do.
        """
        best: tuple[bytes, CalibrationMethod] | None = None
        best_fit: tuple[float, ...] = (-np.inf,)
        failed: list[ModelError] = []
        for method in track(METHODS, "choosing how to quantize"):
            try:
                candidate = self.quantize(method)
                found = fit(candidate)
            except ModelError as error:
                failed.append(error)
                continue
            if best is None or found > best_fit:
                best, best_fit = (candidate, method), found
        if best is None:
            raise failed[0]
        return best

    def layers(self) -> dict[str, str]:
        """The names of the nodes with weights that INT8 makes faster, in order, and their operators."""
        graph = onnx.load_from_string(self._folded).graph
        weights = {tensor.name for tensor in graph.initializer}
        return {
            node.name: node.op_type
            for node in graph.node
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
            and weights.intersection(node.input)
        }


def dynamic(model: bytes) -> bytes:
    """`model` with INT8 matrix products whose activation ranges are taken anew for every input.

    Convolutions stay FP32, since theirs would be slower. Raises `ModelError` when that fails.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "int8.onnx"
        try:
            quantize_dynamic(
                onnx.load_from_string(fold(model)),
                target,
                op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention", "EmbedLayerNormalization"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:
            raise ModelError(f"the model cannot be quantized dynamically: {error}") from error
        return target.read_bytes()


def _unbounded(model: bytes) -> list[str]:
    """The nodes that take a mask of infinities, or what such a node makes: no scale fits those."""
    graph = onnx.load_from_string(model).graph
    masks = {name for name, values in constants(graph) if not np.isfinite(values).all()}
    masked = {name for node in graph.node if masks.intersection(node.input) for name in node.output}
    return [node.name for node in graph.node if (masks | masked).intersection(node.input)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands `samples` to the quantizer a chunk at a time, all of one size, and a few chunks at once.

    The calibrators with histograms want chunks of one size, so what is left over is left out. They also
    keep every activation of the chunks that they are handed at once, which is why these are few.
    """

    def __init__(self, name: str, samples: Samples) -> None:
        size = max(1, min(len(samples), _CHUNK_ELEMENTS // max(1, samples[0].size)))
        self._name = name
        self._chunks = [samples[at : at + size] for at in range(0, len(samples) - size + 1, size)]
        self._at = 0
        self._end = len(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Named by ONNX Runtime: which chunks come next."""
        self._at, self._end = start_index, end_index

    def get_next(self) -> Tensors | None:
        if self._at >= self._end:
            return None
        self._at += 1
        return {self._name: self._chunks[self._at - 1]}
