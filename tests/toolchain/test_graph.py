"""What is taken from exporters, what is changed in it, and what is refused in one clear line."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from inference_core.confidence import softmax
from inference_core.errors import InvalidInput, ModelError
from tests.toolchain import families, networks
from toolchain.graph import Graph, align, check, fold, quiet, read_model
from toolchain.runs import run_model

node = helper.make_node
WEIGHTS = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32)
LINEAR = [node("MatMul", ["x", "w"], ["y"])]
Sizes = Sequence[int | str]


def tensor(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def weight(rows: int) -> TensorProto:
    """`w` `[rows, 3]`."""
    return tensor("w", WEIGHTS[:rows])


def value(name: str, sizes: Sizes, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, sizes)


def model(
    nodes: Sequence[NodeProto] = LINEAR,
    weights: Sequence[TensorProto] | None = None,
    takes: Sequence[ValueInfoProto] | None = None,
    gives: Sequence[ValueInfoProto] | None = None,
    opsets: Sequence[tuple[str, int]] = (("", 17),),
    ir_version: int = 9,
) -> bytes:
    """`x` `[batch, 4]` to `y` `[batch, 3]` by a product with `w`, unless told otherwise; not checked."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        list(takes or [value("x", ["batch", 4])]),
        list(gives or [value("y", ["batch", 3])]),
        list([weight(4)] if weights is None else weights),
    )
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    made: bytes = helper.make_model(graph, opset_imports=imports, ir_version=ir_version).SerializeToString()
    return made


def flat(*sizes: int | str) -> bytes:
    """`x` of `sizes`, flattened to 24 numbers, times `w`."""
    nodes = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["y"])]
    return model(nodes, [weight(24)], [value("x", sizes)])


def inputs(graph: Graph, count: int = 5) -> NDArray[np.float32]:
    shape = (count, *graph.input.shape)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def operators(data: bytes) -> list[str]:
    return [one.op_type for one in onnx.load_from_string(data).graph.node]


# ---- what is taken


def test_a_graph_says_what_it_takes_and_gives() -> None:
    graph = check(networks.full_network(), "full.onnx")
    assert (graph.input.name, graph.input.datatype, graph.input.shape) == ("input", "FP32", (1, 8, 8))
    assert (graph.output.name, graph.output.datatype, graph.output.shape) == ("logits", "FP32", (3,))
    assert graph.opset == 17
    assert graph.nodes == len(operators(graph.data)) == 6
    assert graph.notes == ("7 nodes simplified to 6",)
    assert graph.parameters == sum(one.size for one in _weights(graph.data))
    samples = networks.inputs(20, seed=3)
    wanted = run_model(networks.full_network(), samples)
    np.testing.assert_allclose(run_model(graph.data, samples), wanted, atol=1e-4)


def _weights(data: bytes) -> list[NDArray[Any]]:
    return [numpy_helper.to_array(one) for one in onnx.load_from_string(data).graph.initializer]


@pytest.mark.parametrize("axis", [{}, {"axis": -1}, {"axis": 1}], ids=str)
@pytest.mark.parametrize("behind", [[], [node("Identity", ["p"], ["y"])]], ids=["last", "before Identity"])
def test_a_softmax_at_the_end_is_taken_off(axis: dict[str, Any], behind: list[NodeProto]) -> None:
    made = node("Softmax", ["l"], ["p" if behind else "y"], **axis)
    full = model([node("MatMul", ["x", "w"], ["l"]), made, *behind])
    graph = check(full, "m.onnx")
    assert operators(graph.data) == ["MatMul"]
    assert "Softmax at the end taken off: calibration works on logits" in graph.notes
    rows = inputs(graph)
    np.testing.assert_allclose(softmax(run_model(graph.data, rows)), run_model(full, rows), atol=1e-6)


def test_a_softmax_in_the_middle_stays() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["l"]),
        node("Softmax", ["l"], ["p"]),
        node("Add", ["l", "p"], ["y"]),
    ]
    graph = check(model(nodes), "m.onnx")
    assert "Softmax" in operators(graph.data)
    assert graph.notes == ()


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_opset_is_raised(opset: int) -> None:
    graph = check(model(opsets=[("", opset)], ir_version=6), "m.onnx")
    assert graph.opset == 17
    assert f"opset {opset} raised to 17" in graph.notes


def test_weights_that_old_exporters_call_inputs_are_no_inputs() -> None:
    full = model(takes=[value("x", ["batch", 4]), value("w", [4, 3])], opsets=[("", 13)], ir_version=3)
    graph = check(full, "m.onnx")
    assert [one.name for one in onnx.load_from_string(graph.data).graph.input] == ["x"]
    assert graph.input.shape == (4,)


def test_open_axes_are_filled() -> None:
    graph = check(flat("batch", "n", 4), "m.onnx", (6, 4))
    assert graph.input.shape == (6, 4)
    assert "axis 'n' of the input set to 6" in graph.notes


def test_a_fixed_batch_is_opened() -> None:
    graph = check(flat(2, 6, 4), "m.onnx")
    assert "batch axis of size 2 opened" in graph.notes
    assert run_model(graph.data, inputs(graph, 7)).shape == (7, 3)


@pytest.mark.parametrize(("operator", "bound"), [("Min", np.inf), ("Max", -np.inf)])
def test_an_infinite_mask_or_bound_is_no_weight(operator: str, bound: float) -> None:
    mask = tensor("m", np.array([0, bound, 0], np.float32))
    full = _after(node(operator, ["l", "m"], ["c"]), node("Add", ["c", "l"], ["y"]), more=[mask])
    assert check(full, "m.onnx").output.shape == (3,)


def test_every_node_gets_a_name_of_its_own() -> None:
    names = [one.name for one in onnx.load_from_string(fold(networks.full_network())).graph.node]
    assert all(names)
    assert len(set(names)) == len(names) > 4


# ---- what is refused


def _external() -> bytes:
    loaded = onnx.load_from_string(model())
    kept = loaded.graph.initializer[0]
    kept.data_location = TensorProto.EXTERNAL
    kept.external_data.add(key="location", value="weights.bin")
    data: bytes = loaded.SerializeToString()
    return data


def _constant(**attributes: Any) -> bytes:
    constant = node("Constant", [], ["c"], **attributes)
    return model([constant, node("MatMul", ["x", "w"], ["l"]), node("Add", ["l", "c"], ["y"])])


def _after(*nodes: NodeProto, more: Sequence[TensorProto] = (), **changes: Any) -> bytes:
    return model([node("MatMul", ["x", "w"], ["l"]), *nodes], [weight(4), *more], **changes)


def _nested(values: NDArray[np.float32]) -> bytes:
    def branch(name: str, constant: NDArray[np.float32]) -> onnx.GraphProto:
        made = node("Constant", [], [name], value=tensor(name, constant))
        return helper.make_graph([made], name, [], [value(name, [3])])

    nodes = [
        node("If", ["c"], ["b"], then_branch=branch("t", values * 0 + 1), else_branch=branch("e", values)),
        node("Add", ["l", "b"], ["y"]),
    ]
    return _after(*nodes, more=[tensor("c", np.array(True))])


NAN = np.full((4, 3), np.nan, np.float32)
CONV = tensor("k", np.ones((3, 4, 1, 1), np.float32))
SQUARE = value("x", ["batch", 4, 8, 8])
CUSTOM = [("", 17), ("my.ops", 1)]
ZERO = tensor("zero", np.array(0, np.int64))
FIXED = tensor("b", WEIGHTS[:2])
OUTSIDE = "export it as one file, with operators of ai.onnx, ai.onnx.ml and com.microsoft alone"
NEWER = "export it with opset 13 or later"

REFUSED: dict[str, tuple[bytes, str]] = {
    "text": (b"hello world, no model", "not an ONNX file"),
    "nothing": (b"", "not an ONNX file, it has no graph"),
    "external data": (_external(), f"tensor 'w' keeps its data outside the file; {OUTSIDE}"),
    "domain": (
        model([node("Foo", ["x"], ["y"], domain="my.ops")], opsets=CUSTOM),
        f"operators of domain 'my.ops' are not allowed; {OUTSIDE}",
    ),
    "operator": (
        model([node("Foo", ["x"], ["y"])]),
        "not a valid ONNX model: No Op registered for Foo with domain_version of 17",
    ),
    "no opset": (model(opsets=[]), f"names no opset of the standard operators; {NEWER}"),
    "other opset": (
        model([node("Gelu", ["x"], ["y"], domain="com.microsoft")], opsets=[("com.microsoft", 1)]),
        f"names no opset of the standard operators; {NEWER}",
    ),
    "opset 10": (model(opsets=[("", 10)]), f"opset 10 is older than 11; {NEWER}"),
    "two inputs": (
        _after(node("Add", ["l", "z"], ["y"]), takes=[value("x", ["batch", 4]), value("z", ["batch", 3])]),
        "takes 2 inputs (x, z), not 1; export it with one",
    ),
    "no input": (
        model([node("Identity", ["w"], ["y"])], takes=[value("w", [4, 3])]),
        "takes 0 inputs (none), not 1; export it with one",
    ),
    "two outputs": (
        _after(
            node("Relu", ["l"], ["y"]), gives=[value("y", ["batch", 3]), value("l", ["batch", 3])]
        ),
        "gives 2 outputs (y, l), not 1; export the logits alone",
    ),
    "rank 1": (
        model(takes=[value("x", [4])], gives=[value("y", [3])]),
        "input 'x' is [4], so there is no batch axis before others; export it with one",
    ),
    "open image without batch": (
        flat(3, "h", "w"),
        "input 'x' is [3, h, w]: more axes than the batch axis, the first, are open; export it with fixed "
        "ones, or give --input-shape",
    ),
    "two open axes": (
        flat("batch", "n", 4),
        "input 'x' is [batch, n, 4]: more axes than the batch axis, the first, are open; export it with "
        "fixed ones, or give --input-shape",
    ),
    "image without batch": (
        model(
            [node("Reshape", ["x", "s"], ["f"]), node("MatMul", ["f", "w"], ["y"])],
            [weight(24), tensor("s", np.array([1, 24], np.int64))],
            [value("x", [3, 2, 4])],
            [value("y", [1, 3])],
        ),
        "3 rows give an output 'y' of shape [1, 3], not [3, classes]: there is no batch axis, or it is no "
        "classifier",
    ),
    "FP16": (
        model([node("Cast", ["x"], ["f"], to=1), node("MatMul", ["f", "w"], ["y"])],
              takes=[value("x", ["batch", 4], TensorProto.FLOAT16)]),
        "input 'x' is FLOAT16, not one of FP32, INT64, INT32, UINT8; cast it inside the graph",
    ),
    "strings": (
        model([node("Cast", ["x"], ["f"], to=1), node("MatMul", ["f", "w"], ["y"])],
              takes=[value("x", ["batch", 4], TensorProto.STRING)]),
        "input 'x' is STRING, not one of FP32, INT64, INT32, UINT8; cast it inside the graph",
    ),
    "NaN": (
        model(weights=[tensor("w", NAN)]),
        "weight 'w' holds a NaN or an infinity; train or export it again",
    ),
    "NaN in a Constant": (
        _constant(value=tensor("", NAN[0])),
        "weight 'c' holds a NaN or an infinity; train or export it again",
    ),
    "NaN as an attribute": (
        _constant(value_floats=[1.0, 2.0, float("nan")]),
        "weight 'c' holds a NaN or an infinity; train or export it again",
    ),
    "NaN in a branch": (
        _nested(NAN[0]),
        "weight 'e' holds a NaN or an infinity; train or export it again",
    ),
    "infinite weight": (
        model(weights=[tensor("w", np.where(np.eye(4, 3) > 0, np.inf, WEIGHTS[:4]).astype(np.float32))]),
        "weight 'w' holds a NaN or an infinity; train or export it again",
    ),
    "infinite answers": (
        _after(node("Log", ["l"], ["y"])),
        "output 'y' holds a NaN or an infinity when it is run on plain noise",
    ),
    "segmentation": (
        model([node("Conv", ["x", "k"], ["y"])], [CONV], [SQUARE], [value("y", ["batch", 3, 8, 8])]),
        "3 rows give an output 'y' of shape [3, 3, 8, 8], not [3, classes]: there is no batch axis, or it is "
        "no classifier",
    ),
    "regression": (
        model(weights=[tensor("w", WEIGHTS[:4, :1])], gives=[value("y", ["batch", 1])]),
        "output 'y' is float32 with 1 classes, not FP32 with 2 or more",
    ),
    "whole numbers": (
        _after(node("Cast", ["l"], ["y"], to=7), gives=[value("y", ["batch", 3], TensorProto.INT64)]),
        "output 'y' is int64 with 3 classes, not FP32 with 2 or more",
    ),
    "fixed batch": (
        _after(node("Add", ["l", "b"], ["y"]), more=[FIXED], takes=[value("x", [2, 4])],
               gives=[value("y", [2, 3])]),
        "the batch axis has a fixed size of 2 that the graph depends on; export it with an open one (input "
        "'x': shape must be [2, 4], got [3, 4])",
    ),
    "bomb": (
        _after(
            node("ConstantOfShape", ["s"], ["big"]),
            node("ReduceSum", ["big"], ["z"], keepdims=0),
            node("Add", ["l", "z"], ["y"]),
            more=[tensor("s", np.array([1 << 40], np.int64))],
        ),
        "ConstantOfShape asks for 4194304 MiB at once, the limit is 6144 MiB of memory; use a smaller model",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_model_is_refused_in_one_clear_line(bad: bytes, reason: str) -> None:
    with pytest.raises(ModelError) as refused:
        check(bad, "mine.onnx")
    assert str(refused.value) == f"mine.onnx: {reason}"


DEPENDENT = {
    "softmax": [node("Softmax", ["l"], ["y"], axis=0)],
    "mean": [node("ReduceMean", ["l"], ["m"], axes=[0]), node("Sub", ["l", "m"], ["y"])],
    "sum so far": [node("CumSum", ["l", "zero"], ["y"])],
    "first": [node("Gather", ["l", "zero"], ["f"]), node("Sub", ["l", "f"], ["y"])],
}


@pytest.mark.parametrize("nodes", DEPENDENT.values(), ids=list(DEPENDENT))
def test_rows_that_depend_on_each_other_are_refused(nodes: list[NodeProto]) -> None:
    with pytest.raises(ModelError) as refused:
        check(_after(*nodes, more=[ZERO]), "mine.onnx")
    wanted = r"mine\.onnx: the answers to one input differ by \d\S* alone and in a batch; rows must not .*"
    assert re.fullmatch(wanted, str(refused.value))


def test_an_opset_that_is_too_new_is_refused_without_the_names_of_functions() -> None:
    with pytest.raises(ModelError, match="Opset 99 is under development") as refused:
        check(model(opsets=[("", 99)]), "mine.onnx")
    assert str(refused.value).startswith("mine.onnx: ONNX Runtime cannot load it: ONNX Runtime only")
    assert "::" not in str(refused.value)


@pytest.mark.parametrize("shape", [(6, 5), (6,), (6, 4, 1)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as refused:
        check(flat("batch", "n", 4), "mine.onnx", shape)
    assert str(refused.value) == (
        f"mine.onnx: input 'x' is [batch, n, 4], which does not fit --input-shape {shape}"
    )


def test_a_shape_that_the_graph_cannot_take_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^mine\.onnx: the run failed: .*MatMul.*dimension mismatch$"):
        check(flat("batch", "n", 4), "mine.onnx", (7, 4))


def test_files_that_cannot_be_read_are_refused(tmp_path: Any) -> None:
    with pytest.raises(InvalidInput, match=r"none\.onnx: no such file"):
        read_model(tmp_path / "none.onnx")
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(InvalidInput, match=r"large\.onnx: 2147483648 bytes, the limit is 2147483647"):
        read_model(large)
    (tmp_path / "small.onnx").write_bytes(b"onnx")
    assert read_model(tmp_path / "small.onnx") == b"onnx"


# ---- two models, and libraries that talk


def test_a_model_takes_the_names_of_another() -> None:
    # Inside the edge model, other tensors are called as the full model's input and output are.
    nodes = [
        node("MatMul", ["image", "logits"], ["input"]),
        node("Relu", ["input"], ["r"]),
        node("Add", ["r", "input"], ["scores"]),
    ]
    named = model(nodes, [tensor("logits", WEIGHTS[:4])], [value("image", ["batch", 4])],
                  [value("scores", ["batch", 3])])  # fmt: skip
    edge = check(named, "edge.onnx")
    nodes = [node("MatMul", ["input", "w"], ["logits"])]
    full = check(model(nodes, None, [value("input", ["batch", 4])], [value("logits", ["batch", 3])]), "full")
    aligned = align(edge, full)
    assert (aligned.input, aligned.output) == (full.input, full.output)
    loaded = onnx.load_from_string(aligned.data)
    onnx.checker.check_model(loaded, full_check=True)
    assert [one.name for one in (*loaded.graph.input, *loaded.graph.output)] == ["input", "logits"]
    rows = inputs(full)
    np.testing.assert_array_equal(run_model(aligned.data, rows), run_model(edge.data, rows))


def test_models_that_do_not_fit_are_not_aligned() -> None:
    full = check(model(), "full.onnx")
    with pytest.raises(
        ModelError, match=re.escape("the edge model takes FP32 [6, 4], the full model FP32 [4]")
    ):
        align(check(flat("batch", 6, 4), "edge.onnx"), full)
    other = model(weights=[tensor("w", WEIGHTS[:4, :2])], gives=[value("y", ["batch", 2])])
    with pytest.raises(ModelError, match=re.escape("the edge model gives FP32 [2], the full model FP32 [3]")):
        align(check(other, "edge.onnx"), full)


def test_ids_are_taken_as_they_are() -> None:
    family = next(family for family in families.FAMILIES if family.name == "bert")
    graph = check(family.build(), "bert.onnx")
    assert (graph.input.datatype, graph.input.shape) == ("INT64", families.TOKENS)


def test_what_libraries_say_and_set_up_is_gone_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with quiet():
        extra = logging.StreamHandler()
        root.addHandler(extra)
        root.setLevel(logging.INFO)  # as a library's `basicConfig` does
        logging.info("advice")
        print("step 1 of 3")  # noqa: T201
    assert (root.level, root.handlers) == (level, handlers)
    assert logging.getLogger("other").isEnabledFor(logging.WARNING)
    assert capfd.readouterr() == ("", "")


def test_a_graph_in_a_graph_is_taken() -> None:
    assert check(_nested(np.ones(3, np.float32)), "m.onnx").output.shape == (3,)
