"""The batch axis: opened, and kept out of shapes that the graph computes."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from inference_core.engine import Engine
from toolchain.batch import BATCH, freeze_reshapes, open_batch

node = helper.make_node


def model(nodes: Sequence[NodeProto], rows: int | str, **ints: Sequence[int]) -> onnx.ModelProto:
    """`x` `[rows, 2, 6]` to `y` `[rows, 12]`, with INT64 constants."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 12])],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in ints.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(given: onnx.ModelProto, rows: int) -> NDArray[np.float32]:
    values = np.arange(rows * 12, dtype=np.float32).reshape(rows, 2, 6)
    return np.asarray(Engine(given.SerializeToString(), name="m").run({"x": values})["y"])


def shapes_of(data: bytes, rows: int) -> dict[str, NDArray[np.int64]]:
    return dict(Engine(data, name="m").run({"x": np.zeros((rows, 2, 6), np.float32)}))


@pytest.mark.parametrize("target", [(1, 12), (1, -1), (-1, 12)])
@pytest.mark.parametrize("constant", [False, True])
def test_a_fixed_batch_is_opened_in_constant_reshapes(target: tuple[int, int], constant: bool) -> None:
    reshape = node("Reshape", ["x", "s"], ["y"])
    values = numpy_helper.from_array(np.array(target, np.int64))
    made = node("Constant", [], ["s"], value=values)
    given = model([made, reshape], 1) if constant else model([reshape], 1, s=target)
    assert open_batch(given.graph) == 1
    for end in (*given.graph.input, *given.graph.output):
        assert end.type.tensor_type.shape.dim[0].dim_param == BATCH
    np.testing.assert_array_equal(run(given, 3), np.arange(36, dtype=np.float32).reshape(3, 12))


def test_a_reshape_that_shares_its_target_with_another_use_leaves_that_alone() -> None:
    nodes = [node("Reshape", ["x", "s"], ["y"]), node("Identity", ["s"], ["other"])]
    given = model(nodes, 1, s=(1, 12))
    open_batch(given.graph)
    kept = next(tensor for tensor in given.graph.initializer if tensor.name == "s")
    assert numpy_helper.to_array(kept).tolist() == [1, 12]
    assert given.graph.node[0].input[1] != "s"


def test_an_open_batch_stays_as_it_is() -> None:
    given = model([node("Reshape", ["x", "s"], ["y"])], "n", s=(3, 12))
    assert open_batch(given.graph) == 0
    assert list(given.graph.node[0].input) == ["x", "s"]


COMPUTED = [
    node("Shape", ["x"], ["shape"]),
    node("Gather", ["shape", "zero"], ["rows"]),
    node("Concat", ["rows", "rest"], ["target"], axis=0),
]


def test_a_target_with_the_batch_in_it_becomes_a_constant() -> None:
    given = model([*COMPUTED, node("Reshape", ["x", "target"], ["y"])], "n", zero=[0], rest=[12])
    assert freeze_reshapes(given, shapes_of) == 1
    reshape = given.graph.node[-1]
    frozen = next(tensor for tensor in given.graph.initializer if tensor.name == reshape.input[1])
    assert numpy_helper.to_array(frozen).tolist() == [-1, 12]
    np.testing.assert_array_equal(run(given, 5), np.arange(60, dtype=np.float32).reshape(5, 12))


def test_a_target_with_the_batch_in_it_twice_is_left_alone() -> None:
    # As [rows, 12 / rows, rows] would be: no constant stands for it.
    nodes = [
        *COMPUTED,
        node("Concat", ["rows", "rows", "one"], ["twice"], axis=0),
        node("Expand", ["flat", "twice"], ["big"]),
        node("Reshape", ["big", "twice"], ["z"]),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    flat = node("ConstantOfShape", ["one"], ["flat"])
    given = model([flat, *nodes], "n", zero=[0], rest=[12], one=[1])
    assert freeze_reshapes(given, shapes_of) == 1
    assert given.graph.node[-2].input[1] == "twice"


def test_nothing_is_run_where_every_target_is_known() -> None:
    def refuse(data: bytes, rows: int) -> dict[str, NDArray[np.int64]]:
        raise AssertionError("run")

    given = model([node("Reshape", ["x", "s"], ["y"])], "n", s=(-1, 12))
    assert freeze_reshapes(given, refuse) == 0


def test_targets_of_different_lengths_are_left_alone() -> None:
    def differ(data: bytes, rows: int) -> dict[str, NDArray[np.int64]]:
        return {"target": np.ones(rows, np.int64)}

    given = model([*COMPUTED, node("Reshape", ["x", "target"], ["y"])], "n", zero=[0], rest=[12])
    assert freeze_reshapes(given, differ) == 0
