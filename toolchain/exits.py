"""Early exits: a small classifier on the features at a cut, taught by the full model's own answers.

Pooling and one linear layer, found by convex optimisation, so that no training framework, no labels and
no patience are needed. It turns a single model into a pair: the head with its exit answers at the edge,
and what it is not sure about goes on from the same features in the cloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from inference_core.engine import Engine
from inference_core.manifest import TensorInfo
from toolchain.progress import track
from toolchain.runs import agreement, run

Floats = NDArray[np.float64]

_GRID = 2  # the finer pooling has as many cells along each axis of a picture
_FINE_LIMIT = 4096  # pooled numbers, above which the finer pooling is left out
_DECAYS = (1e-1, 1e-2, 1e-3)  # of the squared weights, tried on the samples held back
_FOLDS = 4  # as many exits are each taught without another part of the samples
_STEPS = 100


@dataclass(frozen=True)
class Exit:
    """A head with its exit: `model` gives the features as they go up, and the logits `[batch, classes]`.

    `logits` `[n, classes]` are what exits like it answer to its samples: each to the quarter of them that
    it was not taught on. So they are as good as the exit is on samples that it has never seen.
    """

    model: bytes
    logits: NDArray[np.float32]


def grow_exit(
    head: bytes,
    boundary: Sequence[TensorInfo],
    samples: NDArray[Any],
    wanted: NDArray[np.float32],
    output: str,
) -> Exit:
    """`head`, which ends with uint8 features, with an exit that answers `samples` as `wanted` does.

    `samples` are `[n, ...]`, at least four; `wanted` are the full model's logits `[n, classes]`. Their
    softmax is what is learnt (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
    2015), by multinomial logistic regression on standardised pooled features. `output` names the logits.
    """
    grown = onnx.load_from_string(head)
    pooled = _pool(grown, boundary)
    engine = Engine(_with_output(grown, pooled, TensorProto.FLOAT), name="head")
    features = run(engine, {engine.inputs[0].name: samples}, "pooling features")[pooled].astype(np.float64)
    weights, bias, logits = _learn(features, wanted.astype(np.float64))
    constants = [
        numpy_helper.from_array(weights.astype(np.float32), "exit.weight"),
        numpy_helper.from_array(bias.astype(np.float32), "exit.bias"),
    ]
    grown.graph.initializer.extend(constants)
    grown.graph.node.append(helper.make_node("Gemm", [pooled, "exit.weight", "exit.bias"], [output], "exit"))
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", wanted.shape[1]])
    grown.graph.output.insert(0, value)
    onnx.checker.check_model(grown)
    return Exit(grown.SerializeToString(), logits.astype(np.float32))


def _pool(model: onnx.ModelProto, boundary: Sequence[TensorInfo]) -> str:
    """Appends the pooling of all boundary tensors to the graph; returns the name of its result."""
    parts = []
    for info in boundary:
        scale, zero = f"{info.name}.scale", f"{info.name}.zero"
        real = f"{info.name}.exit"
        nodes = [helper.make_node("DequantizeLinear", [info.name, scale, zero], [real])]
        made = _pictures(info, real) if len(info.shape) == 3 else _rows(info, real)
        model.graph.node.extend([*nodes, *made[0]])
        model.graph.initializer.extend(made[1])
        parts += made[2]
    pooled = "exit.pooled"
    model.graph.node.append(helper.make_node("Concat", parts, [pooled], axis=1))
    return pooled


Made = tuple[list[NodeProto], list[TensorProto], list[str]]


def _pictures(info: TensorInfo, real: str) -> Made:
    """Mean and maximum of each channel of `[c, h, w]`, and means over a grid where that is few numbers."""
    channels, height, width = info.shape
    kernel = [height // _GRID, width // _GRID]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("mean", "GlobalAveragePool", {}),
        ("max", "GlobalMaxPool", {}),
    ]
    if min(kernel) >= 1 and channels * _GRID**2 <= _FINE_LIMIT:
        kinds.append(("grid", "AveragePool", {"kernel_shape": kernel, "strides": kernel}))
    nodes, names = [], []
    for kind, operator, attributes in kinds:
        pooled, flat = f"{real}.{kind}", f"{real}.{kind}.flat"
        nodes.append(helper.make_node(operator, [real], [pooled], **attributes))
        nodes.append(helper.make_node("Flatten", [pooled], [flat]))
        names.append(flat)
    return nodes, [], names


def _rows(info: TensorInfo, real: str) -> Made:
    """Mean and maximum over the steps of `[steps, d]`; anything else as it is, flat."""
    flat = f"{real}.flat"
    if len(info.shape) != 2:
        return [helper.make_node("Flatten", [real], [flat])], [], [flat]
    turned, nodes, names = f"{real}.turned", [], []
    nodes.append(helper.make_node("Transpose", [real], [turned], perm=[0, 2, 1]))
    for kind, operator in (("mean", "GlobalAveragePool"), ("max", "GlobalMaxPool")):
        nodes.append(helper.make_node(operator, [turned], [f"{real}.{kind}"]))
        nodes.append(helper.make_node("Flatten", [f"{real}.{kind}"], [f"{real}.{kind}.flat"]))
        names.append(f"{real}.{kind}.flat")
    return nodes, [], names


def _with_output(model: onnx.ModelProto, name: str, kind: int) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return copy.SerializeToString()


def _learn(features: Floats, wanted: Floats) -> tuple[Floats, Floats, Floats]:
    """Weights `[f, k]` and bias `[k]` taught on all samples, and logits `[n, k]` by cross-fitting.

    The decay is what is best on the first part of the samples when taught on the others.
    """
    targets = softmax(wanted, axis=1)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    standard = (features - mean) / spread
    folds = np.arange(len(features)) % _FOLDS
    table = (np.zeros((features.shape[1], wanted.shape[1])), np.zeros(wanted.shape[1]))
    held, best, decay, best_fit = folds == 0, table, _DECAYS[0], (-1.0, -np.inf)
    for tried in track(_DECAYS, "teaching an exit"):
        table = _fit(standard[~held], targets[~held], tried, table)
        given = standard[held] @ table[0] + table[1]
        likelihood = float((targets[held] * log_softmax(given, axis=1)).sum(axis=1).mean())
        fit = (agreement(given.astype(np.float32), wanted[held].astype(np.float32)), likelihood)
        if fit > best_fit:
            best, decay, best_fit = table, tried, fit
    crossed = standard @ best[0] + best[1]
    for fold in track(range(1, _FOLDS), "teaching an exit without a part"):
        held = folds == fold
        if held.any():
            table = _fit(standard[~held], targets[~held], decay, best)
            crossed[held] = standard[held] @ table[0] + table[1]
    table = _fit(standard, targets, decay, best)
    weights = table[0] / spread[:, None]
    return weights, table[1] - mean @ weights, crossed


def _fit(
    features: Floats, targets: Floats, decay: float, start: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    """Least cross-entropy plus `decay / 2` times the squared weights, by L-BFGS from `start`."""
    count, size = features.shape
    classes = targets.shape[1]

    def loss(flat: Floats) -> tuple[float, Floats]:
        table = flat.reshape(size + 1, classes)
        logs = log_softmax(features @ table[:-1] + table[-1], axis=1)
        slope = (np.exp(logs) - targets) / count
        gradient = np.vstack([features.T @ slope + decay * table[:-1], slope.sum(axis=0)])
        value = -(targets * logs).sum() / count + decay / 2 * (table[:-1] ** 2).sum()
        return float(value), gradient.ravel()

    flat = np.vstack(start).ravel()
    found = minimize(loss, flat, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    table = found.x.reshape(size + 1, classes)
    return table[:-1], table[-1]
