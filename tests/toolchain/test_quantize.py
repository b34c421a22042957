"""Smaller forms of a model: what is stored, and that the answers stay."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inference_core.errors import ModelError
from inference_core.trust import check_model_file
from tests.toolchain import networks
from toolchain.evaluate import agreement, run_model
from toolchain.quantize import byte_weights, fold, half_weights, quantize

SAMPLES = networks.inputs(100, seed=1)
HELD_OUT = networks.inputs(200, seed=2)


def _types(model: bytes) -> Counter[int]:
    """How many large initializers there are of each type."""
    tensors = onnx.load_from_string(model).graph.initializer
    return Counter(tensor.data_type for tensor in tensors if np.prod(tensor.dims) >= 64)


def test_int8_keeps_nearly_all_classes_in_less_than_half_the_bytes() -> None:
    full = networks.full_network()
    small = quantize(full, SAMPLES)
    assert agreement(run_model(small, HELD_OUT), run_model(full, HELD_OUT)) > 0.95
    assert len(small) < len(full) / 2
    check_model_file("int8", small)


def test_weights_are_seven_bits_per_channel_and_activations_u8() -> None:
    graph = onnx.load_from_string(quantize(networks.full_network(), SAMPLES)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [array for array in arrays.values() if array.dtype == np.int8 and array.ndim > 1]
    assert [array.shape for array in weights] == [(12, 1, 3, 3), (12, 12, 3, 3), (3, 768)]
    assert all(array.min() >= -64 and array.max() <= 64 for array in weights)
    scales = [arrays[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert sorted(scale.size for scale in scales)[-2:] == [12, 12]
    zeros = [arrays[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert set(zeros) == {np.dtype(np.uint8)}


def test_a_held_out_set_never_makes_the_agreement_worse() -> None:
    full = networks.full_network()
    wanted = run_model(full, HELD_OUT)
    plain = agreement(run_model(quantize(full, SAMPLES), HELD_OUT), wanted)
    assert agreement(run_model(quantize(full, SAMPLES, HELD_OUT), HELD_OUT), wanted) >= plain


def test_the_choice_is_made_behind_what_finishes_the_model() -> None:
    seen = []

    def finish(outputs: np.ndarray) -> np.ndarray:
        seen.append(outputs.shape)
        return outputs[:, :2]

    quantize(networks.full_network(), SAMPLES, HELD_OUT, finish)
    assert set(seen) == {(200, 3)}


def test_the_same_samples_give_the_same_bytes() -> None:
    assert quantize(networks.full_network(), SAMPLES) == quantize(networks.full_network(), SAMPLES)


def test_a_number_of_samples_that_is_no_multiple_of_the_chunk_is_fine() -> None:
    assert quantize(networks.full_network(), SAMPLES[:3], HELD_OUT)
    assert quantize(networks.full_network(), SAMPLES[:67], HELD_OUT)


def test_what_is_no_model_cannot_be_quantized() -> None:
    empty = onnx.ModelProto()
    with pytest.raises(ModelError, match="cannot be prepared"):
        quantize(empty.SerializeToString(), SAMPLES)


def test_folding_leaves_no_normalisation_and_the_same_answers() -> None:
    folded = fold(networks.full_network())
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(folded).graph.node}
    wanted = run_model(networks.full_network(), HELD_OUT)
    np.testing.assert_allclose(run_model(folded, HELD_OUT), wanted, atol=1e-5)


def test_half_weights_halve_the_bytes_and_keep_the_answers() -> None:
    full = networks.full_network()
    half = half_weights(full)
    assert _types(half) == {TensorProto.FLOAT16: 3}
    assert len(half) < 0.6 * len(full)
    np.testing.assert_allclose(run_model(half, HELD_OUT), run_model(full, HELD_OUT), atol=5e-3)
    onnx.checker.check_model(onnx.load_from_string(half), full_check=True)


def test_byte_weights_quarter_the_bytes_and_keep_nearly_all_classes() -> None:
    full = networks.full_network()
    small = byte_weights(full)
    assert _types(small) == {TensorProto.INT8: 3}
    assert len(small) < 0.4 * len(full)
    assert agreement(run_model(small, HELD_OUT), run_model(full, HELD_OUT)) > 0.97
    onnx.checker.check_model(onnx.load_from_string(small), full_check=True)


def test_the_scales_of_int8_layers_stay_fp32() -> None:
    small = quantize(networks.full_network(), SAMPLES)
    assert half_weights(small) == half_weights(half_weights(small))
    np.testing.assert_array_equal(run_model(half_weights(small), HELD_OUT), run_model(small, HELD_OUT))


@pytest.mark.parametrize("change", [half_weights, byte_weights])
def test_small_weights_stay_as_they_are(change: object) -> None:
    weight = numpy_helper.from_array(np.ones((7, 9), np.float32), "w")
    model = networks.finish([helper.make_node("MatMul", ["input", "w"], ["logits"])], [weight], [7], [9])
    assert callable(change)
    assert TensorProto.FLOAT in {t.data_type for t in onnx.load_from_string(change(model)).graph.initializer}


def test_weights_beyond_fp16_stay_fp32() -> None:
    weight = numpy_helper.from_array(np.full((8, 9), 1e5, np.float32), "w")
    model = networks.finish([helper.make_node("MatMul", ["input", "w"], ["logits"])], [weight], [8], [9])
    assert _types(half_weights(model)) == {TensorProto.FLOAT: 1}
