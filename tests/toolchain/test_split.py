"""Cutting a model: the halves stand for the whole, with uint8 between them."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from inference_core.engine import Engine
from inference_core.errors import ModelError
from tests.toolchain import networks
from toolchain.graph import fold
from toolchain.ranges import Range
from toolchain.runs import agreement, run, run_model
from toolchain.split import FEATURES, Split, cut, split

SAMPLES = networks.inputs(100, seed=1)
HELD_OUT = networks.inputs(400, seed=2)
UNSEEN = networks.inputs(1000, seed=3)


@pytest.fixture(scope="module")
def halves() -> Split:
    return split(networks.full_network(), ["inner"], SAMPLES, HELD_OUT)


def test_the_halves_agree_with_the_whole(halves: Split) -> None:
    wanted = run_model(networks.full_network(), UNSEEN)
    answers = run_model(halves.tail, run_model(halves.head, UNSEEN))
    assert agreement(answers, wanted) > 0.98
    judged = HELD_OUT[1::2]  # the others chose the ranges
    answers = run_model(halves.tail, run_model(halves.head, judged))
    assert halves.agreement == agreement(answers, run_model(networks.full_network(), judged)) > 0.98


def test_between_them_is_uint8_of_the_cut_tensors_shape(halves: Split) -> None:
    head, tail = Engine(halves.head, name="head"), Engine(halves.tail, name="tail")
    (info,) = halves.boundary
    assert (info.name, info.datatype, info.shape) == (FEATURES, "UINT8", (networks.CHANNELS, 8, 8))
    assert [(s.name, s.datatype, s.shape) for s in head.inputs] == [("input", "FP32", (-1, 1, 8, 8))]
    assert [(s.name, s.datatype, s.shape) for s in head.outputs] == [(FEATURES, "UINT8", (-1, 12, 8, 8))]
    assert head.outputs == tail.inputs
    assert [(s.name, s.datatype, s.shape) for s in tail.outputs] == [("logits", "FP32", (-1, 3))]


def test_the_features_use_most_of_their_range(halves: Split) -> None:
    features = run_model(halves.head, UNSEEN)
    assert features.min() == 0
    assert features.max() == 255


def test_each_half_keeps_only_its_own_weights(halves: Split) -> None:
    shapes = [
        {tuple(tensor.dims) for tensor in onnx.load_from_string(half).graph.initializer}
        for half in (halves.head, halves.tail)
    ]
    assert (12, 1, 3, 3) in shapes[0]
    assert not shapes[0] & {(12, 12, 3, 3), (3, 768)}
    assert (12, 1, 3, 3) not in shapes[1]


def test_the_head_becomes_int8_where_that_agrees() -> None:
    # So few samples agree whatever the rounding does.
    few = split(networks.full_network(), ["inner"], SAMPLES, HELD_OUT[:4])
    assert few.precision == "int8"
    nodes = [node.op_type for node in onnx.load_from_string(few.head).graph.node]
    assert nodes[-1] == "QuantizeLinear"
    assert "DequantizeLinear" in nodes
    wanted = run_model(networks.full_network(), UNSEEN)
    assert agreement(run_model(few.tail, run_model(few.head, UNSEEN)), wanted) > 0.97


def test_features_below_zero_survive() -> None:
    halves = split(networks.full_network(), ["c2"], SAMPLES, HELD_OUT)
    zero = next(
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(halves.head).graph.initializer
        if tensor.name == f"{FEATURES}.zero"
    )
    assert zero > 0
    assert halves.agreement > 0.98


def test_what_passes_around_may_be_cut_too() -> None:
    whole = networks.full_network(around=True)
    halves = split(whole, ["inner", "n1"], SAMPLES, HELD_OUT)
    assert [(info.name, info.datatype) for info in halves.boundary] == [
        (f"{FEATURES}.0", "UINT8"),
        (f"{FEATURES}.1", "UINT8"),
    ]
    head, tail = Engine(halves.head, name="head"), Engine(halves.tail, name="tail")
    assert {spec.name for spec in head.outputs} == {spec.name for spec in tail.inputs}
    answers = run(tail, run(head, {"input": UNSEEN}))["logits"]
    assert agreement(answers, run_model(whole, UNSEEN)) > 0.98
    # The first is what a ReLU made of the second, so only the second goes below zero.
    zeros = {
        tensor.name: int(numpy_helper.to_array(tensor))
        for tensor in onnx.load_from_string(halves.tail).graph.initializer
        if tensor.name.endswith(".zero")
    }
    assert zeros[f"{FEATURES}.0.zero"] == 0 < zeros[f"{FEATURES}.1.zero"]


def test_a_cut_before_it_is_quantized_changes_nothing() -> None:
    folded = fold(networks.full_network(around=True))
    head, tail, boundary = cut(folded, ["inner", "n1"])
    assert {info.shape for info in boundary} == {(networks.CHANNELS, 8, 8)}
    features = run(Engine(head, name="head"), {"input": UNSEEN})
    answers = run(Engine(tail, name="tail"), features)["logits"]
    np.testing.assert_allclose(answers, run_model(folded, UNSEEN), rtol=1e-5, atol=1e-5)


@given(
    scale=st.floats(1e-6, 1e3),
    zero=st.integers(0, 255),
    steps=st.lists(st.integers(0, 255), min_size=1, max_size=20),
)
def test_a_range_restores_what_it_stored(scale: float, zero: int, steps: list[int]) -> None:
    rule = Range(float(np.float32(scale)), zero)
    stored = np.array(steps, np.uint8)
    assert np.array_equal(rule.store(rule.restore(stored)), stored)
    beyond = np.array([-1e9, 1e9], np.float32)
    assert rule.store(beyond).tolist() == [0, 255]


def test_the_same_samples_give_the_same_halves(halves: Split) -> None:
    assert split(networks.full_network(), ["inner"], SAMPLES, HELD_OUT) == halves


def test_a_cut_that_something_passes_around_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be cut at 'inner'"):
        split(networks.full_network(around=True), ["inner"], SAMPLES, HELD_OUT)


@pytest.mark.parametrize("tensor", ["nowhere", "input", "logits", "w1"])
def test_a_name_that_is_no_inner_tensor_is_refused(tensor: str) -> None:
    with pytest.raises(ModelError, match=f"no inner tensor '{tensor}'"):
        split(networks.full_network(), [tensor], SAMPLES, HELD_OUT)


def test_a_model_with_two_outputs_is_refused() -> None:
    model = onnx.load_from_string(networks.full_network())
    model.graph.output.append(helper.make_tensor_value_info("inner", 1, ["batch", 12, 8, 8]))
    with pytest.raises(ModelError, match="one input and one output, got 1 and 2"):
        split(model.SerializeToString(), ["c2"], SAMPLES, HELD_OUT)


def test_a_tensor_of_another_type_is_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["logits"], to=onnx.TensorProto.FLOAT),
    ]
    with pytest.raises(ModelError, match="'whole' is not FP32"):
        split(networks.finish(nodes, [], [4], [4]), ["whole"], np.ones((2, 4), np.float32), HELD_OUT)
