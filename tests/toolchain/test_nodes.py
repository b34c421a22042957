"""Names and constants, in nested graphs, too."""

import numpy as np
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from toolchain.nodes import all_names, constants, drop_unused, free_name, name_nodes, rename, used_names

node = helper.make_node


def graph(*nodes: NodeProto, gives: str = "y", weights: tuple[str, ...] = ()) -> GraphProto:
    """`x` to `gives` through `nodes`; weights are ones."""
    values = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in weights]
    start, end = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", gives))
    return helper.make_graph(list(nodes), "graph", [start], [end], values)


def branch(made: str, *takes: str) -> GraphProto:
    """What a branch of If computes: the sum of tensors that are outside of it, or its own constant."""
    values = helper.make_tensor_value_info(made, TensorProto.FLOAT, ["n"])
    own = node("Constant", [], [f"{made}.own"], value_floats=[1.0, 2.0])
    return helper.make_graph([own, node("Sum", [*takes, f"{made}.own"], [made])], made, [], [values])


def choice() -> NodeProto:
    return node("If", ["c"], ["y"], then_branch=branch("t", "a", "b"), else_branch=branch("e", "a"))


def test_what_nested_graphs_take_is_used() -> None:
    assert used_names([choice()]) >= {"c", "a", "b"}
    assert used_names([node("Relu", ["x"], ["y"])]) == {"x"}


def test_what_is_needed_in_a_nested_graph_only_is_kept() -> None:
    made = [node("Relu", ["x"], [name]) for name in ("a", "b", "d", "c")]
    given = graph(*made, choice())
    drop_unused(given)
    assert [one.output[0] for one in given.node] == ["a", "b", "c", "y"]


def test_a_chain_that_leads_nowhere_is_dropped_whole() -> None:
    given = graph(
        node("Relu", ["x"], ["a"]),
        node("Neg", ["a"], ["b"]),
        node("Neg", ["b"], ["d"]),
        node("Neg", ["a"], ["y"]),
    )
    drop_unused(given)
    assert [one.output[0] for one in given.node] == ["a", "y"]


def test_constants_of_all_kinds_are_found() -> None:
    held = numpy_helper.from_array(np.array([5.0], np.float32))
    whole = numpy_helper.from_array(np.array([7], np.int64))
    given = graph(
        node("Constant", [], ["c1"], value=held),
        node("Constant", [], ["c2"], value=whole),
        node("Constant", [], ["c3"], value_float=3.0),
        choice(),
        weights=("w",),
    )
    found = {name: values.tolist() for name, values in constants(given)}
    assert found.keys() == {"w", "c1", "c3", "t.own", "e.own"}
    assert found["c1"] == [5.0]
    assert 3.0 in found["c3"]
    assert found["t.own"][:2] == [1.0, 2.0]


def test_only_nodes_without_a_name_of_their_own_get_one() -> None:
    given = graph(*(node("Relu", ["x"], [f"r{at}"], name) for at, name in enumerate(["a", "", "a", "a", ""])))
    name_nodes(given)
    assert [one.name for one in given.node] == ["a", "Relu.r1", "a.1", "a.2", "Relu.r4"]


@pytest.mark.parametrize(("taken", "free"), [(set(), "a"), ({"a"}, "a.1"), ({"a", "a.1", "b"}, "a.2")])
def test_a_free_name_is_not_taken(taken: set[str], free: str) -> None:
    assert free_name("a", taken) == free


def test_tensors_are_renamed_everywhere_at_once() -> None:
    given = graph(node("Add", ["x", "a"], ["b"]), node("Neg", ["b"], ["c"]), choice(), weights=("a",))
    rename(given, {"a": "b", "b": "a", "y": "x", "x": "y"})
    assert all_names(given) >= {"a", "b", "c", "x", "y", "t", "e"}
    assert [list(one.input) for one in given.node] == [["y", "b"], ["a"], ["c"]]
    assert (given.input[0].name, given.output[0].name, given.initializer[0].name) == ("y", "x", "b")
    inner = next(attribute.g for attribute in given.node[2].attribute if attribute.name == "then_branch")
    assert list(inner.node[1].input) == ["b", "a", "t.own"]
