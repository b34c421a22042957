"""Cutting a model in two, with the features on the way up as uint8.

`tail(head(x))` stands for `full(x)`. QuantizeLinear ends the head and DequantizeLinear begins the tail,
so whoever serves either half needs to know nothing about the cut.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from inference_core.engine import Engine
from inference_core.errors import ModelError
from inference_core.manifest import TensorInfo
from inference_core.tensors import Tensors
from toolchain.forms import Precision
from toolchain.graph import fold
from toolchain.progress import track
from toolchain.quantize import Quantizer
from toolchain.ranges import Ranges, constants, range_of
from toolchain.runs import agreement, likeness, run, run_model
from toolchain.sensitivity import rank_layers, spare_layers
from toolchain.storage import byte_weights

Samples = NDArray[Any]
_log = logging.getLogger(__name__)

FEATURES = "features"  # what the tensors between the halves are called, numbered where there are several
SAFE_AGREEMENT = 0.997  # on the held-out samples, unless told otherwise
_PERCENTILES = (100.0, 99.99, 99.97, 99.9, 99.7, 99.0)
_CHOICE_SAMPLES = 1000  # at most, on which ranges are chosen


@dataclass(frozen=True)
class Split:
    """Both halves as ONNX files, what passes between them, and how it was measured on samples held out.

    `boundary` are the tensors as they travel; `precision` is that of the head's arithmetic.
    """

    head: bytes
    tail: bytes
    boundary: tuple[TensorInfo, ...]
    precision: Precision
    agreement: float


def split(
    model: bytes,
    tensors: Sequence[str],
    samples: Samples,
    held_out: Samples,
    enough: float = SAFE_AGREEMENT,
) -> Split:
    """`model`, an FP32 ONNX file with one input and one output, cut at its inner tensors `tensors`.

    The range of the features is taken from `samples` (`[n, ...]`), clipped where that agrees best with
    `model` on one half of `held_out`, at least 2 samples. Of INT8, INT8 with a few layers in float, INT8
    weights with FP32 arithmetic, and FP32, the head is the first with which the share `enough` of the
    other half keeps its class, which had no say in how it was made; else the last. Raises `ModelError`
    when there are no such tensors, when something passes around them, or when one is not FP32 with a
    fixed shape.
    """
    head, tail, boundary = cut(fold(model), tensors)
    few, held_out = held_out[::2][:_CHOICE_SAMPLES], held_out[1::2]
    wanted = run_model(model, held_out)
    ranges = _choose_ranges(head, tail, samples, few)
    finished = _begin_with_dequantize(tail, ranges)
    result = None
    for precision, candidate in _candidates(head, tail, samples, few, enough):
        data = _end_with_quantize(candidate, ranges)
        share = agreement(_finish(finished, _features(data, held_out)), wanted)
        result = Split(data, finished, boundary, precision, share)
        if share >= enough:
            break
    assert result is not None
    return result


def cut(model: bytes, tensors: Sequence[str]) -> tuple[bytes, bytes, tuple[TensorInfo, ...]]:
    """The FP32 halves of `model`, whose shapes are inferred, and the boundary as it is once quantized.

    The tensors at the boundary are renamed to `FEATURES`. Raises what `split` raises.
    """
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ModelError(
            f"a cut needs one input and one output, got {len(graph.input)} and {len(graph.output)}"
        )
    infos = {value.name: value for value in graph.value_info}
    made = {name for node in graph.node for name in node.output} - {graph.output[0].name}
    missing = [tensor for tensor in tensors if tensor not in made or tensor not in infos]
    if missing or not tensors:
        raise ModelError(f"there is no inner tensor {', '.join(map(repr, missing))} to cut at")
    above = _needed(graph, set(tensors), stop=set())
    below = _needed(graph, {graph.output[0].name}, stop=set(tensors))
    passed = {graph.input[0].name, *_made_from(graph, above)} - set(tensors)
    around = passed & {name for node in below for name in node.input}
    if around:
        shown = ", ".join(map(repr, tensors))
        raise ModelError(f"the model cannot be cut at {shown}: {', '.join(sorted(around))} passes around it")
    names = [FEATURES] if len(tensors) == 1 else [f"{FEATURES}.{at}" for at in range(len(tensors))]
    boundary = tuple(
        TensorInfo(name=name, datatype="UINT8", shape=_shape(infos[tensor]))
        for name, tensor in zip(names, tensors, strict=True)
    )
    for old, new in zip(tensors, names, strict=True):
        for node in graph.node:
            _rename(node, old, new)
        infos[old].name = new
    between = [infos[tensor] for tensor in tensors]
    head = _part(loaded, above, list(graph.input), between)
    return head, _part(loaded, below, between, list(graph.output)), boundary


def _candidates(
    head: bytes, tail: bytes, samples: Samples, held_out: Samples, enough: float
) -> Iterator[tuple[Precision, bytes]]:
    """Forms of `head` with the precision of their arithmetic, the cheapest first."""
    wanted = _finish(tail, _features(head, held_out))

    def fit(candidate: bytes) -> tuple[float, float]:
        return likeness(_finish(tail, _features(candidate, held_out)), wanted)

    with Quantizer(head, samples) as quantizer:
        try:
            if quantizer.layers():
                best, method = quantizer.best(fit)
                yield "int8", best
                ranked = rank_layers(quantizer, method, lambda candidate: -fit(candidate)[1])
                mixed = spare_layers(quantizer, method, ranked, lambda data: fit(data)[0] >= enough)
                if mixed is not None:
                    yield "mixed", mixed[0]
        except ModelError as error:
            _log.warning("a head stays in FP32: %s", error)
    yield "fp32", byte_weights(head)
    yield "fp32", head


def _features(head: bytes, samples: Samples) -> Tensors:
    engine = Engine(head, name="head")
    return run(engine, {engine.inputs[0].name: samples})


def _finish(tail: bytes, features: Tensors) -> Samples:
    (logits,) = run(Engine(tail, name="tail"), features).values()
    return logits


def _choose_ranges(head: bytes, tail: bytes, samples: Samples, held_out: Samples) -> Ranges:
    seen, features = _features(head, samples), _features(head, held_out)
    wanted = _finish(tail, features)
    best: Ranges = {}
    best_fit = (-np.inf, -np.inf)
    for percentile in track(_PERCENTILES, "choosing the range of the features"):
        ranges = {name: range_of(values, percentile) for name, values in seen.items()}
        restored = {name: ranges[name].restore(ranges[name].store(features[name])) for name in features}
        fit = likeness(_finish(tail, restored), wanted)
        if fit > best_fit:
            best, best_fit = ranges, fit
    return best


def _needed(graph: GraphProto, wanted: set[str], stop: set[str]) -> list[NodeProto]:
    """The nodes that make `wanted`, in order, when `stop` is given."""
    wanted = set(wanted)
    nodes = []
    for node in reversed(graph.node):
        if wanted.intersection(set(node.output) - stop):
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1]


def _made_from(graph: GraphProto, nodes: Sequence[NodeProto]) -> set[str]:
    """What `nodes` make from the input; what they make from weights alone, both halves can have."""
    found = {graph.input[0].name}
    for node in nodes:
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _rename(node: NodeProto, old: str, new: str) -> None:
    node.input[:] = [new if name == old else name for name in node.input]
    node.output[:] = [new if name == old else name for name in node.output]


def _part(
    model: ModelProto,
    nodes: list[NodeProto],
    starts: list[ValueInfoProto],
    ends: list[ValueInfoProto],
) -> bytes:
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    made = {name for node in nodes for name in node.output} - {end.name for end in ends}
    inner = [value for value in model.graph.value_info if value.name in made]
    graph = helper.make_graph(nodes, model.graph.name, starts, ends, weights, value_info=inner)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    result: bytes = part.SerializeToString()
    return result


def _shape(info: ValueInfoProto) -> tuple[int, ...]:
    kind = info.type.tensor_type
    sizes = [size.dim_value for size in kind.shape.dim][1:]
    if kind.elem_type != TensorProto.FLOAT or not sizes or min(sizes) < 1:
        raise ModelError(f"tensor {info.name!r} is not FP32 [batch, ...] with a fixed shape, got {sizes}")
    return tuple(sizes)


def _end_with_quantize(head: bytes, ranges: Ranges) -> bytes:
    """`head` with its outputs stored as uint8; an INT8 head's own last quantization gives way to `ranges`."""
    model = onnx.load_from_string(head)
    graph = model.graph
    for output in graph.output:
        name, real = output.name, f"{output.name}.real"
        made_by = {made: node for node in graph.node for made in node.output}
        last = made_by[name]
        first = made_by.get(last.input[0])
        uses = [used for node in graph.node for used in node.input]
        if (
            last.op_type == "DequantizeLinear"
            and first is not None
            and first.op_type == "QuantizeLinear"
            and name not in uses
            and uses.count(first.output[0]) == 1
        ):
            graph.node.remove(last)
            graph.node.remove(first)
            real = first.input[0]
        else:
            for node in graph.node:
                _rename(node, name, real)
        scales = constants(name, ranges[name])
        inputs = [real, *(scale.name for scale in scales)]
        graph.node.append(helper.make_node("QuantizeLinear", inputs, [name], f"{name}.quantize"))
        graph.initializer.extend(scales)
        output.type.tensor_type.elem_type = TensorProto.UINT8
    return _checked(model)


def _begin_with_dequantize(tail: bytes, ranges: Ranges) -> bytes:
    model = onnx.load_from_string(tail)
    for at, value in enumerate(model.graph.input):
        name, real = value.name, f"{value.name}.real"
        for node in model.graph.node:
            _rename(node, name, real)
        scales = constants(name, ranges[name])
        inputs = [name, *(scale.name for scale in scales)]
        node = helper.make_node("DequantizeLinear", inputs, [real], f"{name}.dequantize")
        model.graph.node.insert(at, node)
        model.graph.initializer.extend(scales)
        value.type.tensor_type.elem_type = TensorProto.UINT8
    return _checked(model)


def _checked(model: ModelProto) -> bytes:
    onnx.checker.check_model(model)
    result: bytes = model.SerializeToString()
    return result
