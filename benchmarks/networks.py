"""Well-known networks as ONNX files, with the published shapes and seeded random weights.

Speed, size and the ways a network can be cut do not depend on what the weights learned. They are scaled so
that activations stay of order 1 through the depth, and the same call always gives the same bytes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference

from inference_core.engine import Engine

Samples = NDArray[np.float32]
Classes = NDArray[np.int64]

INPUT = "input"
OUTPUT = "logits"
_RESIDUE = 0.5  # gain of what a residual block adds, so that sums do not grow with the depth
_CHUNK = 50  # samples in one run
_RIDGE = 0.03  # how much `teach` keeps weights small, beside the features' mean variance
_CERTAIN = 8.0  # the logit that `teach` aims at for the right class; for the others it is 0


class Graph:
    """A network under construction: every method adds nodes and gives the name of their result.

    The network takes `INPUT` `[batch, *shape]` of the ONNX element type `kind`. Weights come from `seed`.
    """

    def __init__(self, *shape: int, kind: int = TensorProto.FLOAT, seed: int = 0, opset: int = 17) -> None:
        self.input = INPUT
        self._rng = np.random.default_rng(seed)
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._types = {INPUT: helper.make_tensor_type_proto(kind, ["batch", *shape])}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Sizes of `tensor`; -1 stands for a free dimension, such as the batch."""
        sizes = self._types[tensor].tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in sizes)

    def constant(self, values: NDArray[np.generic]) -> str:
        """An initializer that holds `values`."""
        name = f"constant{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(values, name)
        self._types[name] = helper.make_tensor_type_proto(self._constants[name].data_type, values.shape)
        return name

    def ints(self, *values: int) -> str:
        """An INT64 initializer, such as the shape that a Reshape takes."""
        return self.constant(np.array(values, np.int64))

    def weight(self, *shape: int, deviation: float = 1.0, mean: float = 0.0) -> str:
        """An FP32 initializer of normally distributed values."""
        values = self._rng.standard_normal(shape, np.float32) * np.float32(deviation) + np.float32(mean)
        return self.constant(values)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The first output of the operator `op`; later outputs are left out. "" stands for no input."""
        name = f"{op.lower()}{len(self._nodes)}"
        node = helper.make_node(op, inputs, [name], name, **attributes)
        given = {tensor: self._types[tensor] for tensor in inputs if tensor}
        known = {tensor: self._constants[tensor] for tensor in inputs if tensor in self._constants}
        schema = defs.get_schema(op, self._opset, "")
        opsets = [helper.make_opsetid("", self._opset)]
        made = shape_inference.infer_node_outputs(schema, node, given, known, opset_imports=opsets)
        self._types[name] = _copy(made[name])
        self._nodes.append(node)
        return name

    def conv(
        self, x: str, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1, gain: float = 2.0
    ) -> str:
        """A convolution over all dimensions after the channels, padded by half its kernel, without bias.

        `gain` is the variance of the result if what comes in has mean square 1: 2 before a ReLU.
        """
        inside, *sizes = self.shape(x)[1:]
        kernels = [kernel] * len(sizes)
        fan = inside // groups * int(np.prod(kernels))
        weight = self.weight(channels, inside // groups, *kernels, deviation=float(np.sqrt(gain / fan)))
        pads = [kernel // 2] * 2 * len(sizes)
        strides = [stride] * len(sizes)
        return self.node("Conv", x, weight, kernel_shape=kernels, pads=pads, strides=strides, group=groups)

    def norm(self, x: str, gain: float = 1.0) -> str:
        """A batch normalisation with statistics as training leaves them; `gain` scales its result."""
        channels = self.shape(x)[1]
        scale, shift, mean = (
            self.weight(channels, deviation=0.1 * gain, mean=gain),
            self.weight(channels, deviation=0.2 * gain),
            self.weight(channels, deviation=0.2),
        )
        variance = self.constant(self._rng.uniform(0.8, 1.6, channels).astype(np.float32))
        return self.node("BatchNormalization", x, scale, shift, mean, variance)

    def relu(self, x: str) -> str:
        """max(x, 0)"""
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        """min(max(x, 0), 6), as exporters write it: a Clip."""
        limits = (self.constant(np.array(limit, np.float32)) for limit in (0, 6))
        return self.node("Clip", x, *limits)

    def pool(self, x: str, kernel: int, stride: int, pad: int = 0, op: str = "MaxPool") -> str:
        """MaxPool or AveragePool over all dimensions after the channels."""
        rank = len(self.shape(x)) - 2
        return self.node(op, x, kernel_shape=[kernel] * rank, strides=[stride] * rank, pads=[pad] * 2 * rank)

    def add(self, *tensors: str) -> str:
        """The sum of two tensors."""
        return self.node("Add", *tensors)

    def concat(self, *tensors: str, axis: int = 1) -> str:
        """All `tensors` one after the other along `axis`."""
        return self.node("Concat", *tensors, axis=axis)

    def linear(self, x: str, features: int, gain: float = 1.0) -> str:
        """`x` times a weight plus a bias: Gemm for a matrix, else MatMul and Add along the last dimension."""
        sizes = self.shape(x)
        deviation = float(np.sqrt(gain / sizes[-1]))
        bias = self.weight(features, deviation=0.1)
        if len(sizes) == 2:
            return self.node("Gemm", x, self.weight(features, sizes[-1], deviation=deviation), bias, transB=1)
        return self.add(bias, self.node("MatMul", x, self.weight(sizes[-1], features, deviation=deviation)))

    def classify(self, x: str, classes: int) -> bytes:
        """The finished network: the mean of `x` `[batch, channels, ...]` over its places, then `linear`."""
        return self.finish(self.linear(self.node("Flatten", self.node("GlobalAveragePool", x)), classes))

    def finish(self, x: str) -> bytes:
        """The checked ONNX file of the network whose last result, from here on `OUTPUT`, is `x`."""
        nodes = [*self._nodes]
        for node in nodes:
            node.output[:] = [OUTPUT if name == x else name for name in node.output]
        gives = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *self.shape(x)[1:]])
        takes = helper.make_value_info(INPUT, self._types[INPUT])
        graph = helper.make_graph(nodes, "network", [takes], [gives], [*self._constants.values()])
        opsets = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def _copy(kind: TypeProto) -> TypeProto:
    copied = TypeProto()
    copied.CopyFrom(kind)
    return copied


def tiny() -> bytes:
    """Two convolutions for handwritten digits: `[batch, 1, 28, 28]` to 10 classes."""
    graph = Graph(1, 28, 28)
    x = graph.relu(graph.norm(graph.conv(graph.input, 16)))
    x = graph.pool(graph.relu(graph.norm(graph.conv(x, 32, 5))), 4, 4)
    return graph.finish(graph.linear(graph.node("Flatten", x), 10))


def resnet18(size: int = 224, classes: int = 1000) -> bytes:
    """ResNet-18 (He et al., 2015): `[batch, 3, size, size]`."""
    return _resnet(_basic, (2, 2, 2, 2), size, classes)


def resnet50(size: int = 224, classes: int = 1000) -> bytes:
    """ResNet-50 with the strides on the 3x3 convolutions, as torchvision has it: `[batch, 3, size, size]`."""
    return _resnet(_bottleneck, (3, 4, 6, 3), size, classes)


Block = Callable[[Graph, str, int, int], str]


def _resnet(block: Block, depths: tuple[int, ...], size: int, classes: int) -> bytes:
    graph = Graph(3, size, size)
    x = graph.relu(graph.norm(graph.conv(graph.input, 64, 7, stride=2)))
    x = graph.pool(x, 3, 2, pad=1)
    for stage, depth in enumerate(depths):
        for number in range(depth):
            x = block(graph, x, 64 << stage, 2 if stage and not number else 1)
    return graph.classify(x, classes)


def _basic(graph: Graph, x: str, width: int, stride: int) -> str:
    inner = graph.relu(graph.norm(graph.conv(x, width, stride=stride)))
    inner = graph.norm(graph.conv(inner, width), gain=_RESIDUE)
    return graph.relu(graph.add(inner, _shortcut(graph, x, width, stride)))


def _bottleneck(graph: Graph, x: str, width: int, stride: int) -> str:
    inner = graph.relu(graph.norm(graph.conv(x, width, 1)))
    inner = graph.relu(graph.norm(graph.conv(inner, width, stride=stride)))
    inner = graph.norm(graph.conv(inner, width * 4, 1), gain=_RESIDUE)
    return graph.relu(graph.add(inner, _shortcut(graph, x, width * 4, stride)))


def _shortcut(graph: Graph, x: str, channels: int, stride: int) -> str:
    if stride == 1 and graph.shape(x)[1] == channels:
        return x
    return graph.norm(graph.conv(x, channels, 1, stride=stride, gain=1.0))


_INVERTED = (  # factor, channels, depth, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(size: int = 224, classes: int = 1000) -> bytes:
    """MobileNetV2 of width 1 (Sandler et al., 2018): `[batch, 3, size, size]`."""
    graph = Graph(3, size, size)
    x = graph.relu6(graph.norm(graph.conv(graph.input, 32, stride=2)))
    for factor, channels, depth, stride in _INVERTED:
        for number in range(depth):
            x = inverted(graph, x, channels, factor, 1 if number else stride)
    return graph.classify(graph.relu6(graph.norm(graph.conv(x, 1280, 1))), classes)


def inverted(graph: Graph, x: str, channels: int, factor: int, stride: int) -> str:
    """An inverted residual: wider by `factor`, a depthwise convolution, narrowed to `channels`."""
    wide = graph.shape(x)[1] * factor
    inner = x if factor == 1 else graph.relu6(graph.norm(graph.conv(x, wide, 1)))
    inner = graph.relu6(graph.norm(graph.conv(inner, wide, stride=stride, groups=wide)))
    around = stride == 1 and graph.shape(x)[1] == channels
    inner = graph.norm(graph.conv(inner, channels, 1), gain=_RESIDUE if around else 1.0)
    return graph.add(x, inner) if around else inner


def photos(count: int, size: int, seed: int) -> Samples:
    """Seeded noise with the spectrum of photographs, normalised: float32 `[count, 3, size, size]`."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * size
    amplitude = np.maximum(frequency, 1) ** -1.2
    images = np.empty((count, 3, size, size), np.float32)
    for image in images:
        gray, tint = rng.standard_normal((1, size, size)), rng.standard_normal((3, size, size))
        smooth = np.fft.irfft2(np.fft.rfft2(gray + 0.4 * tint) * amplitude, (size, size))
        smooth *= rng.uniform(0.6, 1.2) / smooth.std()
        image[:] = (smooth + rng.normal(0, 0.3)).clip(-2.1, 2.6)
    return images


def scenes(count: int, size: int, seed: int) -> tuple[Samples, Classes]:
    """`photos` of ten things, each its own noise among other noise, and their classes: int64 `[count]`."""
    classes = np.random.default_rng(seed).integers(0, 10, count)
    things = photos(10, size, seed=0)[classes]
    return np.float32(0.85) * things + np.float32(0.5) * photos(count, size, seed + 1), classes


def teach(model: bytes, samples: NDArray[np.generic], classes: Classes) -> bytes:
    """`model` with its last layer, a Gemm, fitted by ridge regression to answer `classes` for `samples`."""
    loaded, asking = onnx.load_from_string(model), onnx.load_from_string(model)
    features, weight, bias = loaded.graph.node[-1].input
    asking.graph.output[0].CopyFrom(helper.make_tensor_value_info(features, TensorProto.FLOAT, [None, None]))
    engine = Engine(asking.SerializeToString(), name="features")
    chunks = (samples[at : at + _CHUNK] for at in range(0, len(samples), _CHUNK))
    values = np.concatenate([engine.run({INPUT: chunk})[features] for chunk in chunks]).astype(np.float64)
    wide = next(tensor.dims[0] for tensor in loaded.graph.initializer if tensor.name == weight)
    wanted = _CERTAIN * np.eye(wide)[classes]
    centre, level = values.mean(axis=0), wanted.mean(axis=0)
    spread = np.cov(values, rowvar=False, bias=True)
    spread += _RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    fitted = np.linalg.solve(spread, (values - centre).T @ (wanted - level) / len(values))
    layer = {weight: fitted.T, bias: level - centre @ fitted}
    for tensor in loaded.graph.initializer:
        if tensor.name in layer:
            tensor.CopyFrom(numpy_helper.from_array(layer[tensor.name].astype(np.float32), tensor.name))
    data: bytes = loaded.SerializeToString()
    return data
