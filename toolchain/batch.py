"""The batch axis of a model: opened where an exporter fixed it, and kept out of computed shapes.

Both change an ONNX graph in place.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

BATCH = "batch"

Shapes = Mapping[str, NDArray[np.int64]]  # the value of each tensor asked for


def open_batch(graph: GraphProto) -> int:
    """Opens the first axis of the input and of the outputs; returns its size until now, 0 for an open one.

    Reshapes whose target is a constant keep their rows apart however many there are.
    """
    weights = {tensor.name for tensor in graph.initializer}
    value = next(value for value in graph.input if value.name not in weights)
    axis = value.type.tensor_type.shape.dim[0]
    fixed = int(axis.dim_value)
    axis.dim_param = BATCH
    for output in graph.output:
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].dim_param = BATCH
    del graph.value_info[:]
    if fixed:
        _open_reshapes(graph)
    return fixed


def freeze_reshapes(model: ModelProto, run: Callable[[bytes, int], Shapes]) -> int:
    """Writes targets of Reshape that the graph computes as constants, -1 where the batch is.

    Exporters compute them from the shape of the input, a thread through the whole graph that no cut
    could leave out. `run` gives the values of all outputs of a model for a number of rows. Returns how
    many targets were written.
    """
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    known |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    computed = [n for n in graph.node if n.op_type == "Reshape" and n.input[1] not in known]
    if not computed:
        return 0
    names = sorted({node.input[1] for node in computed})
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.INT64, None) for n in names)
    data = asked.SerializeToString()
    two, three = run(data, 2), run(data, 3)
    written = 0
    for node in computed:
        target = _target(two[node.input[1]], three[node.input[1]])
        if target is not None:
            name = f"{node.output[0]}.target"
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name
            written += 1
    return written


def _target(two: NDArray[np.int64], three: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The constant that stands for targets seen with 2 and 3 rows, if one does."""
    if two.shape != three.shape or np.array_equal(two, three):
        return two if np.array_equal(two, three) else None
    varying = np.flatnonzero(two != three)
    if len(varying) != 1 or (two == -1).any():
        return None
    target = two.copy()
    target[varying[0]] = -1
    return target


def _open_reshapes(graph: GraphProto) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        target = np.zeros(0, np.int64) if tensor is None else numpy_helper.to_array(tensor).copy()
        if target.size and target[0] > 0:
            # -1 stands for what is left over, 0 for the size of the same axis before.
            target[0] = 0 if (target == -1).any() else -1
            name = f"{node.output[0]}.target"
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name
