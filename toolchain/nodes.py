"""Names and constants in an ONNX graph, those of graphs nested in its nodes included."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

_REAL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def used_names(nodes: Iterable[NodeProto]) -> set[str]:
    """The tensors that `nodes` take, in nested graphs, too."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for graph in _subgraphs(node):
            found |= used_names(graph.node) | {value.name for value in graph.output}
    return found


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def constants(graph: GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """All constants of a float type by name, those of nested graphs included."""
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append((node.output[0], attribute.t))
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                yield node.output[0], np.array([*attribute.floats, attribute.f], np.float32)
        for inner in _subgraphs(node):
            yield from constants(inner)
    for name, tensor in tensors:
        if tensor.data_type in _REAL:
            yield name, numpy_helper.to_array(tensor)


def drop_unused(graph: GraphProto) -> None:
    """Takes out nodes that no output needs: no trial has run them, and folding would."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= used_names([node])
    del graph.node[:]
    graph.node.extend(reversed(kept))


def name_nodes(graph: GraphProto) -> None:
    """Gives every node a name of its own; those that have one keep it."""
    taken: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in taken:
            node.name = free_name(node.name or f"{node.op_type}.{node.output[0]}", taken)
        taken.add(node.name)


def free_name(name: str, taken: set[str]) -> str:
    """`name`, with a number where it is taken."""
    numbered = (f"{name}.{number}" for number in range(1, len(taken) + 2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def all_names(graph: GraphProto) -> set[str]:
    """The names of all tensors but inputs that nothing uses."""
    made = {name for node in graph.node for name in node.output}
    inner = {name for node in graph.node for nested in _subgraphs(node) for name in all_names(nested)}
    return made | inner | used_names(graph.node) | {tensor.name for tensor in graph.initializer}


def rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Renames tensors in place, in nested graphs, too."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for nested in _subgraphs(node):
            rename(nested, names)
