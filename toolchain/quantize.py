"""Smaller forms of an FP32 ONNX model: INT8 for speed on the edge, FP16 weights for size anywhere.

Models are the bytes of an ONNX file, in and out; temporary files are gone when a function returns.
"""

import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from inference_core.engine import Engine
from inference_core.errors import ModelError
from inference_core.tensors import Tensors
from toolchain.evaluate import agreement, run_model
from toolchain.progress import track

Samples = NDArray[np.float32]
Stored = tuple[list[TensorProto], list[NodeProto]]  # constants, and the nodes that restore the weights

METHODS = (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)
_CHUNK = 64  # samples that the calibration runs at once
_SMALL = 64  # elements; smaller initializers stay FP32
_LINEAR = ("QuantizeLinear", "DequantizeLinear")
_BYTE_MAX = 127


def quantize(
    model: bytes,
    samples: Samples,
    held_out: Samples | None = None,
    finish: Callable[[Samples], Samples] = lambda outputs: outputs,
) -> bytes:
    """`model`, which takes one FP32 input `[batch, ...]`, with INT8 arithmetic (QDQ form).

    Activations are U8, with ranges from `samples` (float32 `[n, ...]`), and weights S8 per channel, what
    x86-64 multiplies fastest. Weights use 7 bits: with 8, CPUs without VNNI saturate their 16-bit sums
    and answer differently. How a range is taken is what agrees best with `model` on `held_out`; without
    that it is the minimum and maximum seen. `finish` turns outputs of `model` into logits, where they
    are not. Raises `ModelError` when the model cannot be quantized.
    """
    folded = fold(model)
    if held_out is None:
        return _quantize(folded, samples, CalibrationMethod.MinMax)
    wanted = finish(run_model(model, held_out))
    best, best_fit = b"", (-1.0, -np.inf)
    for method in track(METHODS, "choosing how to quantize"):
        candidate = _quantize(folded, samples, method)
        given = finish(run_model(candidate, held_out))
        fit = (agreement(given, wanted), -float(np.abs(given - wanted).mean()))
        if fit > best_fit:
            best, best_fit = candidate, fit
    return best


def fold(model: bytes) -> bytes:
    """`model` with constants folded, batch normalisation folded into weights, and every shape inferred."""
    loaded = onnx.load_from_string(model)
    with _quiet():
        try:
            slimmed = onnxslim.slim(loaded)
            inferred = onnx.shape_inference.infer_shapes(slimmed, strict_mode=True)
        except Exception as error:
            raise ModelError(f"the model cannot be prepared: {error}") from error
    result: bytes = inferred.SerializeToString()
    return result


def half_weights(model: bytes) -> bytes:
    """`model` with its FP32 weights stored as FP16, each behind a Cast.

    ONNX Runtime folds the Casts when it loads the model, so arithmetic and speed stay FP32. Weights
    that FP16 cannot hold, small ones, and the scales of INT8 layers stay as they are.
    """

    def store(weights: TensorProto) -> Stored | None:
        values = numpy_helper.to_array(weights)
        if np.abs(values).max() > np.finfo(np.float16).max:
            return None
        half = numpy_helper.from_array(values.astype(np.float16), f"{weights.name}.fp16")
        return [half], [helper.make_node("Cast", [half.name], [weights.name], to=TensorProto.FLOAT)]

    return _store(model, store)


def byte_weights(model: bytes) -> bytes:
    """`model` with its FP32 weights stored as S8 and a scale per output channel; arithmetic stays FP32.

    What `half_weights` says of folding and of what is left alone holds here too; so are vectors.
    """

    def store(weights: TensorProto) -> Stored | None:
        values, name = numpy_helper.to_array(weights), weights.name
        if values.ndim < 2:
            return None
        most = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
        scale = np.maximum(most / _BYTE_MAX, np.finfo(np.float32).tiny).astype(np.float32)
        steps = numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.int8")
        factor = numpy_helper.from_array(scale, f"{name}.scale")
        cast = helper.make_node("Cast", [steps.name], [f"{name}.cast"], to=TensorProto.FLOAT)
        return [steps, factor], [cast, helper.make_node("Mul", [cast.output[0], factor.name], [name])]

    return _store(model, store)


def _store(model: bytes, store: Callable[[TensorProto], Stored | None]) -> bytes:
    """`model` with each large FP32 initializer for which `store` has another form in that form."""
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    scales = {name for node in graph.node if node.op_type in _LINEAR for name in node.input[1:]}
    tensors: list[TensorProto] = []
    nodes: list[NodeProto] = []
    for tensor in graph.initializer:
        large = tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _SMALL
        stored = store(tensor) if large and tensor.name not in scales else None
        constants, restoring = stored or ([tensor], [])
        tensors += constants
        nodes += restoring
    changed = helper.make_graph([*nodes, *graph.node], graph.name, graph.input, graph.output, tensors)
    loaded.graph.CopyFrom(changed)
    result: bytes = loaded.SerializeToString()
    return result


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands `samples` to the quantizer a chunk at a time."""

    def __init__(self, name: str, samples: Samples) -> None:
        # The calibrators with histograms want chunks of one size: what is left over is left out.
        size = min(_CHUNK, len(samples))
        starts = range(0, len(samples) - size + 1, size)
        self._chunks = iter([{name: samples[at : at + size]} for at in starts])

    def get_next(self) -> Tensors | None:
        return next(self._chunks, None)


def _quantize(folded: bytes, samples: Samples, method: CalibrationMethod) -> bytes:
    name = Engine(folded, name="fp32").inputs[0].name
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                onnx.load_from_string(folded),
                target,
                _Reader(name, samples),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                calibrate_method=method,
            )
        except Exception as error:
            raise ModelError(f"the model cannot be quantized: {error}") from error
        return target.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries print their steps, and log advice that is already followed here."""
    root: Any = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
