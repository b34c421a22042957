"""Cutting a model in two at a named tensor, with the features on the way up as uint8.

`tail(head(x))` stands for `full(x)`. QuantizeLinear ends the head and DequantizeLinear begins the tail,
so whoever serves either half needs to know nothing about the cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from inference_core.errors import ModelError
from inference_core.manifest import TensorInfo
from toolchain.evaluate import agreement, run_model
from toolchain.progress import track
from toolchain.quantize import byte_weights, fold, quantize

Samples = NDArray[np.float32]

FEATURES = "features"  # what the tensor between the halves is called
SAFE_AGREEMENT = 0.997  # on the held-out samples, so that unseen ones stay above 0.995
_REAL = f"{FEATURES}.real"
_PERCENTILES = (100.0, 99.99, 99.97, 99.9, 99.7, 99.0)
_CHOICE_SAMPLES = 1000  # about so many, on which ranges are chosen


@dataclass(frozen=True)
class Split:
    """Both halves as ONNX files, what passes between them, and how it was measured on the held-out samples.

    `boundary` is the tensor `FEATURES`, as it travels; `precision` that of the head's arithmetic.
    """

    head: bytes
    tail: bytes
    boundary: TensorInfo
    precision: str
    agreement: float


@dataclass(frozen=True)
class _Range:
    """`real = (stored - zero) * scale`, stored as uint8."""

    scale: float
    zero: int

    def store(self, values: Samples) -> NDArray[np.uint8]:
        steps = np.rint(values / np.float32(self.scale)) + self.zero
        return np.asarray(steps.clip(0, 255), np.uint8)


def split(model: bytes, tensor: str, samples: Samples, held_out: Samples) -> Split:
    """`model`, an FP32 ONNX file with one input and one output, cut at its inner tensor `tensor`.

    The range of the features is taken from `samples` (float32 `[n, ...]`), clipped where that agrees
    best with `model` on `held_out`. The head is the first of INT8, INT8 weights with FP32 arithmetic,
    and FP32 with which at least `SAFE_AGREEMENT` of `held_out` keep their class, else the last. Raises
    `ModelError` when there is no such tensor, when something passes around it, or when it is not FP32
    with a fixed shape.
    """
    head, tail, boundary = _cut(onnx.load_from_string(fold(model)), tensor)
    wanted = run_model(model, held_out)
    few = held_out[:: max(1, len(held_out) // _CHOICE_SAMPLES)]
    rule = _choose_range(head, tail, samples, few)
    finished = _begin_with_dequantize(tail, rule)
    result = None
    for precision, candidate in _candidates(head, tail, samples, few):
        data = _end_with_quantize(candidate, rule)
        share = agreement(run_model(finished, run_model(data, held_out)), wanted)
        result = Split(data, finished, boundary, precision, share)
        if share >= SAFE_AGREEMENT:
            break
    assert result is not None
    return result


def _candidates(head: bytes, tail: bytes, samples: Samples, held_out: Samples) -> Iterator[tuple[str, bytes]]:
    """Forms of `head` with the precision of their arithmetic, the cheapest first."""
    yield "int8", quantize(head, samples, held_out, lambda features: run_model(tail, features))
    yield "fp32", byte_weights(head)
    yield "fp32", head


def _choose_range(head: bytes, tail: bytes, samples: Samples, held_out: Samples) -> _Range:
    seen, features = run_model(head, samples), run_model(head, held_out)
    wanted = run_model(tail, features)
    best, best_fit = _Range(1.0, 0), (-1.0, -np.inf)
    for percentile in track(_PERCENTILES, "choosing the range of the features"):
        rule = _range(seen, percentile)
        restored = (rule.store(features).astype(np.float32) - rule.zero) * np.float32(rule.scale)
        given = run_model(tail, restored)
        fit = (agreement(given, wanted), -float(np.abs(given - wanted).mean()))
        if fit > best_fit:
            best, best_fit = rule, fit
    return best


def _range(values: Samples, percentile: float) -> _Range:
    low = min(0.0, float(np.percentile(values, 100 - percentile)))
    high = max(0.0, float(np.percentile(values, percentile)))
    scale = max(high - low, 1e-6) / 255
    return _Range(float(np.float32(scale)), round(-low / scale))


def _cut(model: ModelProto, tensor: str) -> tuple[bytes, bytes, TensorInfo]:
    """The FP32 halves, and the boundary as it will be once quantized."""
    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ModelError(
            f"a cut needs one input and one output, got {len(graph.input)} and {len(graph.output)}"
        )
    made = {name for node in graph.node for name in node.output} - {graph.output[0].name}
    info = next((value for value in graph.value_info if value.name == tensor), None)
    if info is None or tensor not in made:
        raise ModelError(f"there is no inner tensor {tensor!r} to cut at")
    above = _needed(model, tensor, stop="")
    below = _needed(model, graph.output[0].name, stop=tensor)
    passed = {graph.input[0].name, *(name for node in above for name in node.output)} - {tensor}
    around = passed & {name for node in below for name in (*node.input, *node.output)}
    if around:
        raise ModelError(
            f"the model cannot be cut at {tensor!r}: {', '.join(sorted(around))} passes around it"
        )
    boundary = TensorInfo(name=FEATURES, datatype="UINT8", shape=_shape(info))
    for node in graph.node:
        _rename(node, tensor, FEATURES)
    info.name = FEATURES
    head = _part(model, above, graph.input[0], info)
    return head, _part(model, below, info, graph.output[0]), boundary


def _needed(model: ModelProto, tensor: str, stop: str) -> list[NodeProto]:
    """The nodes that make `tensor`, in order, when `stop` is given."""
    wanted = {tensor}
    nodes = []
    for node in reversed(model.graph.node):
        if wanted.intersection(set(node.output) - {stop}):
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1]


def _rename(node: NodeProto, old: str, new: str) -> None:
    node.input[:] = [new if name == old else name for name in node.input]
    node.output[:] = [new if name == old else name for name in node.output]


def _part(model: ModelProto, nodes: list[NodeProto], start: ValueInfoProto, end: ValueInfoProto) -> bytes:
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    made = {name for node in nodes for name in node.output}
    inner = [value for value in model.graph.value_info if value.name in made and value.name != end.name]
    graph = helper.make_graph(nodes, model.graph.name, [start], [end], weights, value_info=inner)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    result: bytes = part.SerializeToString()
    return result


def _shape(info: ValueInfoProto) -> tuple[int, ...]:
    kind = info.type.tensor_type
    sizes = [size.dim_value for size in kind.shape.dim][1:]
    if kind.elem_type != TensorProto.FLOAT or not sizes or min(sizes) < 1:
        raise ModelError(f"tensor {info.name!r} is not FP32 [batch, ...] with a fixed shape, got {sizes}")
    return tuple(sizes)


def _constants(rule: _Range) -> list[TensorProto]:
    return [
        numpy_helper.from_array(np.array(rule.scale, np.float32), f"{FEATURES}.scale"),
        numpy_helper.from_array(np.array(rule.zero, np.uint8), f"{FEATURES}.zero"),
    ]


def _end_with_quantize(head: bytes, rule: _Range) -> bytes:
    """`head` with its output stored as uint8; an INT8 head's own last quantization gives way to `rule`."""
    model = onnx.load_from_string(head)
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    last, real = made_by[FEATURES], _REAL
    first = made_by.get(last.input[0])
    if last.op_type == "DequantizeLinear" and first is not None and first.op_type == "QuantizeLinear":
        graph.node.remove(last)
        graph.node.remove(first)
        real = first.input[0]
    else:
        for node in graph.node:
            _rename(node, FEATURES, _REAL)
    constants = _constants(rule)
    inputs = [real, *(constant.name for constant in constants)]
    graph.node.append(helper.make_node("QuantizeLinear", inputs, [FEATURES], f"{FEATURES}.quantize"))
    graph.initializer.extend(constants)
    graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    return _checked(model)


def _begin_with_dequantize(tail: bytes, rule: _Range) -> bytes:
    model = onnx.load_from_string(tail)
    for node in model.graph.node:
        _rename(node, FEATURES, _REAL)
    constants = _constants(rule)
    inputs = [FEATURES, *(constant.name for constant in constants)]
    node = helper.make_node("DequantizeLinear", inputs, [_REAL], f"{FEATURES}.dequantize")
    model.graph.node.insert(0, node)
    model.graph.initializer.extend(constants)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return _checked(model)


def _checked(model: ModelProto) -> bytes:
    onnx.checker.check_model(model)
    result: bytes = model.SerializeToString()
    return result
