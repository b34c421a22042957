"""Weights in fewer bits: what is stored, and that the answers stay."""

import logging
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inference_core.trust import check_model_file
from tests.toolchain import families, networks
from toolchain.runs import agreement, run_model
from toolchain.storage import byte_weights, half_weights, nibble_weights

FULL = networks.full_network()
HELD_OUT = networks.inputs(200, seed=2)
RNG = np.random.default_rng(0)
node = helper.make_node


def types(model: bytes) -> Counter[int]:
    """How many large initializers there are of each type."""
    tensors = onnx.load_from_string(model).graph.initializer
    return Counter(tensor.data_type for tensor in tensors if np.prod(tensor.dims) >= 64)


def product(weights: NDArray[np.float32]) -> bytes:
    """`input` `[batch, n]` times `weights` `[n, m]`."""
    tensor = numpy_helper.from_array(weights, "w")
    takes, gives = weights.shape
    return networks.finish([node("MatMul", ["input", "w"], ["logits"])], [tensor], [takes], [gives])


# ---- 16 and 8 bits


def test_half_weights_halve_the_bytes_and_keep_the_answers() -> None:
    half = half_weights(FULL)
    assert types(half) == {TensorProto.FLOAT16: 3}
    assert len(half) < 0.6 * len(FULL)
    np.testing.assert_allclose(run_model(half, HELD_OUT), run_model(FULL, HELD_OUT), atol=5e-3)
    onnx.checker.check_model(onnx.load_from_string(half), full_check=True)


def test_byte_weights_quarter_the_bytes_and_keep_nearly_all_classes() -> None:
    small = byte_weights(FULL)
    assert types(small) == {TensorProto.INT8: 3}
    assert len(small) < 0.4 * len(FULL)
    assert agreement(run_model(small, HELD_OUT), run_model(FULL, HELD_OUT)) > 0.97
    onnx.checker.check_model(onnx.load_from_string(small), full_check=True)


def test_weights_are_stored_once_however_often_that_is_done() -> None:
    assert half_weights(half_weights(FULL)) == half_weights(FULL)
    assert byte_weights(byte_weights(FULL)) == byte_weights(FULL)


@pytest.mark.parametrize("change", [half_weights, byte_weights])
def test_small_weights_stay_as_they_are(change: Callable[[bytes], bytes]) -> None:
    tensors = onnx.load_from_string(change(product(np.ones((7, 9), np.float32)))).graph.initializer
    assert [tensor.data_type for tensor in tensors] == [TensorProto.FLOAT]


@pytest.mark.parametrize("scale", [1e5, 1e-6, 1e-9], ids=["too large", "imprecise", "zero"])
def test_weights_that_fp16_cannot_hold_stay_fp32(scale: float) -> None:
    model = product((scale * RNG.standard_normal((8, 9))).astype(np.float32))
    assert types(half_weights(model)) == {TensorProto.FLOAT: 1}


def test_a_row_of_zeros_stays_zero_in_bytes() -> None:
    weights = RNG.standard_normal((8, 9)).astype(np.float32)
    weights[3] = 0
    rows = np.eye(8, dtype=np.float32)
    given = run_model(byte_weights(product(weights)), rows)
    np.testing.assert_array_equal(given[3], np.zeros(9))
    np.testing.assert_allclose(given, weights, atol=np.abs(weights).max() / 127)


@pytest.mark.parametrize("change", [half_weights, byte_weights])
def test_an_infinite_mask_stays_as_it_is(change: Callable[[bytes], bytes]) -> None:
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    assert types(change(product(mask))) == {TensorProto.FLOAT: 1}


# ---- 4 bits


@pytest.fixture(scope="module")
def vgg() -> bytes:
    return next(family for family in families.FAMILIES if family.name == "vgg").build()


def test_nibble_weights_are_an_eighth_and_keep_nearly_all_classes(vgg: bytes) -> None:
    small = nibble_weights(vgg)
    assert small is not None
    nodes = Counter(one.op_type for one in onnx.load_from_string(small).graph.node)
    assert nodes["MatMulNBits"] == 1
    assert nodes["MatMul"] == 1  # ten classes of 64 features are too small
    large = 64 * 1024 * 4  # bytes of the product that is stored
    assert len(vgg) - len(small) > 0.8 * large
    check_model_file("int4", small)
    images = families.images(200, seed=5)[0].astype(np.float32)
    assert agreement(run_model(small, images), run_model(vgg, images)) > 0.97


def test_a_gemm_of_any_kind_answers_the_same_in_four_bits() -> None:
    weights = [
        numpy_helper.from_array(RNG.standard_normal((128, 256), np.float32), "w1"),
        numpy_helper.from_array(RNG.standard_normal((128, 128), np.float32), "w2"),
        numpy_helper.from_array(RNG.standard_normal(128, np.float32), "b"),
        numpy_helper.from_array(RNG.standard_normal((128, 128), np.float32), "w3"),
    ]
    nodes = [
        node("Gemm", ["input", "w1", "b"], ["a"], transB=1),
        node("Gemm", ["a", "w2"], ["c"]),
        node("Gemm", ["c", "w3"], ["logits"], alpha=0.5),  # stays: MatMul has no factor
    ]
    model = networks.finish(nodes, weights, [256], [128])
    small = nibble_weights(model)
    assert small is not None
    kinds = Counter(one.op_type for one in onnx.load_from_string(small).graph.node)
    assert kinds == {"MatMulNBits": 2, "Add": 1, "Gemm": 1}
    rows = RNG.standard_normal((50, 256)).astype(np.float32)
    wanted, given = run_model(model, rows), run_model(small, rows)
    assert np.abs(given - wanted).mean() < 0.2 * np.abs(wanted).mean()


def test_nodes_without_names_are_told_apart() -> None:
    """A small product is left out by its name, which must not take the large ones with it."""
    weights = [
        numpy_helper.from_array(RNG.standard_normal((128, 128), np.float32), "w1"),
        numpy_helper.from_array(RNG.standard_normal((128, 4), np.float32), "w2"),
    ]
    nodes = [node("MatMul", ["input", "w1"], ["a"]), node("MatMul", ["a", "w2"], ["logits"])]
    small = nibble_weights(networks.finish(nodes, weights, [128], [4]))
    assert small is not None
    assert [one.op_type for one in onnx.load_from_string(small).graph.node] == ["MatMulNBits", "MatMul"]


def test_weights_of_nested_graphs_are_kept() -> None:
    def branch(name: str, *takes: str) -> onnx.GraphProto:
        end = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 128])
        return helper.make_graph([node("Add", list(takes), [name])], name, [], [end])

    weights = [
        numpy_helper.from_array(RNG.standard_normal((128, 128), np.float32), "w"),
        numpy_helper.from_array(RNG.standard_normal(128, np.float32), "inside"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    nodes = [
        node("Gemm", ["input", "w"], ["a"]),
        node(
            "If",
            ["yes"],
            ["logits"],
            then_branch=branch("t", "a", "inside"),
            else_branch=branch("e", "a", "a"),
        ),
    ]
    small = nibble_weights(networks.finish(nodes, weights, [128], [128]))
    assert small is not None
    onnx.checker.check_model(onnx.load_from_string(small))
    assert run_model(small, np.zeros((2, 128), np.float32)).shape == (2, 128)


def test_a_model_without_large_products_has_no_four_bits() -> None:
    assert nibble_weights(FULL) is None


def test_four_bits_leave_logging_as_it_was(vgg: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    nibble_weights(vgg)
    assert (root.level, root.handlers) == (level, handlers)
    assert capfd.readouterr() == ("", "")
