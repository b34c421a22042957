"""Small networks of every family that the toolchain meets, each with ten classes and inputs to tell apart.

Weights are random but for the last layer, which is fitted to the classes of seeded inputs: so every network
answers all classes, most with a margin, and is right about unseen inputs more often than not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from benchmarks.networks import Graph, inverted, scenes, teach
from inference_core.tensors import DATATYPES

Inputs = NDArray[np.generic]
Classes = NDArray[np.int64]
Labelled = tuple[Inputs, Classes]

CLASSES = 10
TAUGHT = 1000  # samples on which the last layer is fitted
IMAGE = (3, 32, 32)
WINDOW = (6, 64)  # channels of a sensor, and steps in time
SEQUENCE = (32, 6)  # steps in time, and channels
VALUES = (20,)
TOKENS = (16,)
VOCABULARY = 100

WIDTH = 32  # of a token in the transformers
HEADS = 4


@dataclass(frozen=True)
class Family:
    """A kind of network: `network` makes the untaught ONNX file, `sample(count, seed)` inputs and classes.

    `datatype` and `shape` are those of one input, without the batch.
    """

    name: str
    network: Callable[[], bytes]
    datatype: str
    shape: tuple[int, ...]
    sample: Callable[[int, int], Labelled]

    def build(self) -> bytes:
        """The taught network as an ONNX file: `input` to `logits` FP32 `[batch, 10]`."""
        return taught(self)

    def inputs(self, count: int, seed: int) -> Inputs:
        """Plausible inputs `[count, *shape]`."""
        return self.labelled(count, seed)[0]

    def labelled(self, count: int, seed: int) -> Labelled:
        """The same inputs, and what they show: int64 `[count]`."""
        values, classes = self.sample(count, seed)
        return values.astype(DATATYPES[self.datatype]), classes


@cache
def taught(family: Family) -> bytes:
    """`family`'s network with its last layer fitted; made once, `taught.__wrapped__` makes it anew."""
    values, classes = family.labelled(TAUGHT, seed=1234)
    return teach(family.network(), values, classes)


# ---- inputs


def images(count: int, seed: int) -> Labelled:
    """Images of ten things."""
    return scenes(count, IMAGE[-1], seed)


def windows(count: int, seed: int) -> Labelled:
    """Windows of a sensor `[count, channels, time]`: each class shakes in rhythms of its own."""
    rng, rhythms = np.random.default_rng(seed), np.random.default_rng(0)
    channels, steps = WINDOW
    classes = rng.integers(0, CLASSES, count)
    periods = rhythms.uniform(4, 32, (CLASSES, channels, 1))[classes]
    strengths = rhythms.uniform(0.3, 2, (CLASSES, channels, 1))[classes]
    phases = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    waves = strengths * np.sin(2 * np.pi * np.arange(steps) / periods + phases)
    return waves + 0.4 * rng.standard_normal(waves.shape), classes


def sequences(count: int, seed: int) -> Labelled:
    """The first half of `windows` with time before the channels: `[count, time, channels]`."""
    values, classes = windows(count, seed)
    return values[:, :, : SEQUENCE[0]].swapaxes(1, 2), classes


def tables(count: int, seed: int) -> Labelled:
    """Rows of a table: clouds around a point for each class."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count)
    points = np.random.default_rng(0).standard_normal((CLASSES, *VALUES))
    return points[classes] + 0.6 * rng.standard_normal((count, *VALUES)), classes


def sentences(count: int, seed: int) -> Labelled:
    """Token ids: every class has words that it likes, a third of each sentence is anything."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count)
    liked = np.random.default_rng(0).permutation(VOCABULARY).reshape(CLASSES, -1)
    own = liked[classes[:, None], rng.integers(0, liked.shape[1], (count, *TOKENS))]
    anything = rng.integers(0, VOCABULARY, own.shape)
    return np.where(rng.random(own.shape) < 2 / 3, own, anything), classes


# ---- convolutions


def vgg() -> bytes:
    """Convolutions with batch normalisation and pooling, then two linear layers."""
    graph = Graph(*IMAGE)
    x = graph.input
    for channels in (16, 32, 64):
        x = graph.pool(graph.relu(graph.norm(graph.conv(x, channels))), 2, 2)
    x = graph.relu(graph.linear(graph.node("Flatten", x), 64, gain=2))
    return graph.finish(graph.linear(x, CLASSES))


def resnet() -> bytes:
    """Residual blocks, the second and third with a projection on the shortcut."""
    graph = Graph(*IMAGE)
    x = graph.relu(graph.norm(graph.conv(graph.input, 16)))
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        inner = graph.relu(graph.norm(graph.conv(x, channels, stride=stride)))
        inner = graph.norm(graph.conv(inner, channels), gain=0.5)
        around = x if stride == 1 else graph.norm(graph.conv(x, channels, 1, stride=stride, gain=1))
        x = graph.relu(graph.add(inner, around))
    return graph.classify(x, CLASSES)


def mobilenet() -> bytes:
    """Inverted residuals: depthwise convolutions and Clip."""
    graph = Graph(*IMAGE)
    x = graph.relu6(graph.norm(graph.conv(graph.input, 16, stride=2)))
    for channels, factor, stride in ((16, 1, 1), (24, 4, 2), (24, 4, 1)):
        x = inverted(graph, x, channels, factor, stride)
    return graph.classify(graph.relu6(graph.norm(graph.conv(x, 96, 1))), CLASSES)


def inception() -> bytes:
    """Two blocks of four branches of different sizes, concatenated."""
    graph = Graph(*IMAGE)
    x = graph.pool(graph.relu(graph.norm(graph.conv(graph.input, 16))), 2, 2)
    for width in (8, 16):
        thin = graph.relu(graph.conv(x, width, 1))
        branches = (
            graph.relu(graph.conv(x, width, 1)),
            graph.relu(graph.conv(thin, width, 3)),
            graph.relu(graph.conv(thin, width, 5)),
            graph.relu(graph.conv(graph.pool(x, 3, 1, pad=1), width, 1)),
        )
        x = graph.pool(graph.concat(*branches), 2, 2, op="AveragePool")
    return graph.classify(x, CLASSES)


def densenet() -> bytes:
    """Two blocks in which every layer sees all before it, with a transition in between."""
    graph = Graph(*IMAGE)
    x = graph.conv(graph.input, 16, stride=2)
    for block in range(2):
        for _ in range(3):
            x = graph.concat(x, graph.conv(graph.relu(graph.norm(x)), 12))
        if not block:
            x = graph.pool(graph.conv(graph.relu(graph.norm(x)), 26, 1), 2, 2, op="AveragePool")
    return graph.classify(graph.relu(graph.norm(x)), CLASSES)


def conv1d() -> bytes:
    """Convolutions over time for the windows of a sensor."""
    graph = Graph(*WINDOW)
    x = graph.input
    for channels in (32, 64, 64):
        x = graph.pool(graph.relu(graph.norm(graph.conv(x, channels, 5))), 2, 2)
    return graph.classify(x, CLASSES)


# ---- transformers


def vit() -> bytes:
    """Patches of 8 x 8, a class token, two layers whose queries, keys and values come from one product."""
    graph = Graph(*IMAGE)
    patches = graph.weight(WIDTH, 3, 8, 8, deviation=float(np.sqrt(1 / 192)))
    x = graph.node("Conv", graph.input, patches, kernel_shape=[8, 8], strides=[8, 8])
    x = graph.node("Transpose", graph.node("Reshape", x, graph.ints(0, WIDTH, 16)), perm=[0, 2, 1])
    batch = graph.node("Gather", graph.node("Shape", graph.input), graph.ints(0))
    size = graph.concat(batch, graph.ints(1, WIDTH), axis=0)
    x = graph.concat(graph.node("Expand", graph.weight(1, 1, WIDTH, deviation=0.5), size), x)
    x = graph.add(x, graph.weight(1, 17, WIDTH, deviation=0.3))
    for _ in range(2):
        parts = graph.linear(_layer_norm(graph, x), 3 * WIDTH)
        parts = graph.node("Reshape", parts, graph.ints(0, 0, 3, HEADS, WIDTH // HEADS))
        parts = graph.node("Transpose", parts, perm=[2, 0, 3, 1, 4])
        query, key, value = (graph.node("Gather", parts, _index(graph, at), axis=0) for at in range(3))
        x = graph.add(x, _attend(graph, query, graph.node("Transpose", key, perm=[0, 1, 3, 2]), value))
        x = graph.add(x, _expand(graph, _layer_norm(graph, x)))
    first = graph.node("Gather", _layer_norm(graph, x), _index(graph, 0), axis=1)
    return graph.finish(graph.linear(first, CLASSES))


def bert() -> bytes:
    """Words and positions, two layers with separate products and the norm after the sum, mean of tokens."""
    graph = Graph(*TOKENS, kind=TensorProto.INT64)
    x = graph.node("Gather", graph.weight(VOCABULARY, WIDTH), graph.input)
    x = _layer_norm(graph, graph.add(x, graph.weight(1, *TOKENS, WIDTH, deviation=0.3)))
    for _ in range(2):
        query, key, value = (
            graph.node("Transpose", _heads(graph, graph.linear(x, WIDTH)), perm=perm)
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        x = _layer_norm(graph, graph.add(_attend(graph, query, key, value), x))
        x = _layer_norm(graph, graph.add(_expand(graph, x), x))
    return graph.finish(graph.linear(graph.node("ReduceMean", x, axes=[1], keepdims=0), CLASSES))


def _heads(graph: Graph, x: str) -> str:
    return graph.node("Reshape", x, graph.ints(0, 0, HEADS, WIDTH // HEADS))


def _attend(graph: Graph, query: str, key: str, value: str) -> str:
    """Attention of `query` and `value` `[batch, heads, tokens, size]`, `key` with its last two swapped."""
    scores = graph.node("Div", graph.node("MatMul", query, key), _number(graph, np.sqrt(WIDTH / HEADS)))
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    mixed = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.linear(graph.node("Reshape", mixed, graph.ints(0, 0, WIDTH)), WIDTH)


def _expand(graph: Graph, x: str) -> str:
    """Linear, GELU as PyTorch exports it, linear."""
    x = graph.linear(x, 2 * WIDTH, gain=2)
    error = graph.node("Erf", graph.node("Div", x, _number(graph, np.sqrt(2))))
    x = graph.node("Mul", x, graph.add(error, _number(graph, 1)))
    return graph.linear(graph.node("Mul", x, _number(graph, 0.5)), WIDTH)


def _layer_norm(graph: Graph, x: str) -> str:
    scale, shift = graph.weight(WIDTH, deviation=0.1, mean=1), graph.weight(WIDTH, deviation=0.1)
    return graph.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)


def _number(graph: Graph, value: float) -> str:
    return graph.constant(np.array(value, np.float32))


def _index(graph: Graph, value: int) -> str:
    return graph.constant(np.array(value, np.int64))


# ---- others


def lstm() -> bytes:
    """Two layers of LSTM over a sequence; the last step answers."""
    graph, hidden = Graph(*SEQUENCE), 32
    x = graph.node("Transpose", graph.input, perm=[1, 0, 2])
    for inside in (SEQUENCE[1], hidden):
        weights = (
            graph.weight(1, 4 * hidden, inside, deviation=float(np.sqrt(1 / inside))),
            graph.weight(1, 4 * hidden, hidden, deviation=float(np.sqrt(0.5 / hidden))),
            graph.weight(1, 8 * hidden, deviation=0.1),
        )
        x = graph.node("Squeeze", graph.node("LSTM", x, *weights, hidden_size=hidden), graph.ints(1))
    last = graph.node("Gather", x, _index(graph, -1), axis=0)
    return graph.finish(graph.linear(last, CLASSES))


def mlp() -> bytes:
    """Three linear layers."""
    graph = Graph(*VALUES)
    x = graph.relu(graph.linear(graph.input, 64, gain=2))
    return graph.finish(graph.linear(graph.relu(graph.linear(x, 64, gain=2)), CLASSES))


FAMILIES = (
    *(
        Family(network.__name__, network, "FP32", IMAGE, images)
        for network in (vgg, resnet, mobilenet, inception, densenet, vit)
    ),
    Family("bert", bert, "INT64", TOKENS, sentences),
    Family("conv1d", conv1d, "FP32", WINDOW, windows),
    Family("lstm", lstm, "FP32", SEQUENCE, sequences),
    Family("mlp", mlp, "FP32", VALUES, tables),
)
