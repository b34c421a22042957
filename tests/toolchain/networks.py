"""Two small networks for images of 8 x 8 gray pixels, and images that they were made for.

The full network's own answers are the labels, so it is right about every image. The edge network is the same
with noise on its weights, so it is right about most.
"""

import io

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from inference_core.preprocess import Color, Preprocess
from toolchain.images import LabelledImage
from toolchain.runs import run_model

LABELS = ("round", "square", "flat")
PREPROCESS = Preprocess(color=Color.GRAY, height=8, width=8, mean=(0.5,), std=(0.25,))
CHANNELS = 12


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Gray images, uint8 `[count, 8, 8]`, whose brightness varies from corner to corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4))
    return np.asarray(np.kron(coarse, np.ones((2, 2))), np.uint8)


def inputs(count: int, seed: int = 0) -> NDArray[np.float32]:
    """`noise` as both networks take it: float32 `[count, 1, 8, 8]`."""
    return np.concatenate([PREPROCESS.tensor(png(pixels)) for pixels in noise(count, seed)])


def images(count: int, seed: int = 0) -> list[LabelledImage]:
    """`noise` as PNGs with the labels that `full_network` gives them."""
    classes = run_model(full_network(), inputs(count, seed)).argmax(axis=1)
    return [
        LabelledImage(f"{LABELS[at]}/{number:03d}.png", LABELS[at], png(pixels))
        for number, (at, pixels) in enumerate(zip(classes, noise(count, seed), strict=True))
    ]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """`pixels` `[h, w]` as a PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def full_network(noise: float = 0.0, around: bool = False) -> bytes:
    """Convolution, normalisation, ReLU (`inner`), convolution, ReLU, linear: `input` to `logits` `[n, 3]`.

    `noise` is added to the weights. With `around`, the first convolution is added to the second's result, so
    that a cut at `inner` does not separate the halves.
    """
    rng, blur = np.random.default_rng(7), np.random.default_rng(8)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        values += noise * blur.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    def constant(name: str, value: float) -> onnx.TensorProto:
        return numpy_helper.from_array(np.full(CHANNELS, value, np.float32), name)

    weights = [
        weight("w1", CHANNELS, 1, 3, 3),
        weight("w2", CHANNELS, CHANNELS, 3, 3),
        weight("w3", 3, CHANNELS * 64),
        numpy_helper.from_array(np.array([-0.3, -0.3, 0.3], np.float32), "b3"),
        constant("gain", 1.1),
        constant("bias", 0.1),
        constant("mean", 0.05),
        constant("variance", 0.9),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "gain", "bias", "mean", "variance"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["inner"]),
        helper.make_node("Conv", ["inner", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        *([helper.make_node("Add", ["c2", "n1"], ["s2"])] if around else []),
        helper.make_node("Relu", ["s2" if around else "c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1),
    ]
    return finish(nodes, weights, [1, 8, 8], [3])


def edge_network() -> bytes:
    """`full_network` with noise on its weights: right about most images, not about all."""
    return full_network(noise=0.1)


def finish(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], takes: list[int], gives: list[int]
) -> bytes:
    """An ONNX file from `input` FP32 `[batch, *takes]` to `logits` FP32 `[batch, *gives]`."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *takes])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *gives])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
