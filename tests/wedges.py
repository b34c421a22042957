"""Graphs that do harm: a Loop that can be told to end, one node that cannot, one that wants all memory.

They take `input`, float32 `[n, 3, 8, 8]`, and give `logits` `[n, 3]`, as the models of `tests.bundles` do.
The first value of the input decides: where it is over `over` they do it, else they answer at once.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.bundles import Parts, constant, model_bytes, pool_and_classify

EDGE_BIAS = (0.0, 0.0, 0.0)
ENDLESS = 1 << 62
LONG = 60_000  # boxes that one node compares each with each, some seconds of it


def looping(turns: int = ENDLESS, bias: Sequence[float] = EDGE_BIAS, over: float = 0.99) -> bytes:
    """Hangs in a Loop of so many turns, which heeds being told to end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["value"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["turns", "yes", "plain"], ["logits"], body=body)
    return model_bytes(
        [*_classified(bias), *_amount("turns", turns, over), constant("yes", True, np.bool_), loop]
    )


def comparing(boxes: int = LONG, bias: Sequence[float] = EDGE_BIAS, over: float = 0.99) -> bytes:
    """Hangs in one node, which compares so many boxes each with each and heeds nothing until it has done."""
    nodes = [
        helper.make_node("Reshape", ["turns", "flat"], ["count"]),
        helper.make_node("Concat", ["single", "count", "four"], ["boxes_shape"], axis=0),
        helper.make_node("Concat", ["single", "single", "count"], ["scores_shape"], axis=0),
        helper.make_node("Expand", ["corner", "boxes_shape"], ["boxes"]),
        helper.make_node("Expand", ["score", "scores_shape"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "all", "same"], ["kept"]),
        helper.make_node("ReduceMin", ["kept"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["nothing"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
    ]
    numbers: Parts = [
        constant("single", [1], np.int64),
        constant("four", [4], np.int64),
        constant("corner", [[[0.0, 0.0, 1.0, 1.0]]]),
        constant("score", [[[0.5]]]),
        constant("all", [1 << 40], np.int64),
        constant("same", [1.0]),
    ]
    return model_bytes([*_classified(bias), *_amount("turns", boxes, over, least=1), *numbers, *nodes])


def greedy(elements: int = 1 << 40, bias: Sequence[float] = EDGE_BIAS, over: float = 0.99) -> bytes:
    """Asks for the memory of so many values at once."""
    nodes = [
        helper.make_node("Reshape", ["count", "flat"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
    ]
    return model_bytes([*_classified(bias), *_amount("count", elements, over, least=1), *nodes])


def _classified(bias: Sequence[float]) -> Parts:
    """The classifier of a bundle, its answer called `plain`."""
    parts = pool_and_classify(bias=bias)
    for part in parts:
        if isinstance(part, onnx.NodeProto) and "logits" in part.output:
            part.output[0] = "plain"
    return parts


def _amount(name: str, most: int, over: float, least: int = 0) -> Parts:
    """`most` as the scalar `name` where the input's first value is over `over`, else `least`."""
    return [
        constant("at", [0], np.int64),
        constant("bright", over),
        constant("most", most, np.int64),
        constant("fewest", least, np.int64),
        constant("flat", [-1], np.int64),
        constant("scalar", np.zeros(0), np.int64),
        helper.make_node("Reshape", ["input", "flat"], ["values"]),
        helper.make_node("Gather", ["values", "at"], ["first"]),
        helper.make_node("Reshape", ["first", "scalar"], ["value"]),
        helper.make_node("Greater", ["value", "bright"], ["hang"]),
        helper.make_node("Where", ["hang", "most", "fewest"], [name]),
    ]
