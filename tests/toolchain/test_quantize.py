"""INT8 forms: what is stored, which nodes take part, and that the answers stay."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod

from benchmarks.networks import Graph
from inference_core.errors import ModelError
from inference_core.trust import check_model_file
from tests.toolchain import networks
from tests.toolchain.families import FAMILIES
from toolchain.graph import check
from toolchain.quantize import METHODS, Quantizer, dynamic
from toolchain.runs import agreement, likeness, run_model

FULL = networks.full_network()
SAMPLES = networks.inputs(100, seed=1)
HELD_OUT = networks.inputs(200, seed=2)
MIN_MAX = CalibrationMethod.MinMax
KINDS = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module")
def quantizer() -> Iterator[Quantizer]:
    with Quantizer(FULL, SAMPLES) as quantizer:
        yield quantizer


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


@pytest.mark.parametrize("method", METHODS)
def test_int8_keeps_nearly_all_classes_in_less_than_half_the_bytes(
    quantizer: Quantizer, method: CalibrationMethod
) -> None:
    small = quantizer.quantize(method)
    assert agreement(run_model(small, HELD_OUT), run_model(FULL, HELD_OUT)) > 0.95
    assert len(small) < len(FULL) / 2
    check_model_file("int8", small)


def test_weights_are_seven_bits_per_channel_and_activations_u8(quantizer: Quantizer) -> None:
    graph = onnx.load_from_string(quantizer.quantize(MIN_MAX)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [array for array in arrays.values() if array.dtype == np.int8 and array.ndim > 1]
    assert [array.shape for array in weights] == [(12, 1, 3, 3), (12, 12, 3, 3), (3, 768)]
    assert all(array.min() >= -64 and array.max() <= 64 for array in weights)
    scales = [arrays[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert sorted(scale.size for scale in scales)[-2:] == [12, 12]
    zeros = [arrays[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert set(zeros) == {np.dtype(np.uint8)}


def test_the_best_is_the_first_method_with_the_largest_fit(quantizer: Quantizer) -> None:
    wanted = run_model(FULL, HELD_OUT)
    fits = [likeness(run_model(quantizer.quantize(method), HELD_OUT), wanted) for method in METHODS]
    model, method = quantizer.best(lambda data: likeness(run_model(data, HELD_OUT), wanted))
    assert method == METHODS[fits.index(max(fits))]
    assert model == quantizer.quantize(method)
    assert quantizer.best(lambda _: (1.0,))[1] == METHODS[0]


def test_a_method_that_fails_is_left_out(quantizer: Quantizer) -> None:
    first = quantizer.quantize(METHODS[0])

    def fit(model: bytes) -> tuple[float, ...]:
        if model == first:
            raise ModelError("does not run")
        return (0.0,)

    assert quantizer.best(fit)[1] == METHODS[1]


def test_ranges_are_the_same_measured_or_remembered(quantizer: Quantizer) -> None:
    with Quantizer(FULL, SAMPLES) as other:
        first = other.quantize(CalibrationMethod.Percentile)
        assert first == other.quantize(CalibrationMethod.Percentile)
    assert first == quantizer.quantize(CalibrationMethod.Percentile)


def test_layers_without_names_can_be_told_apart(quantizer: Quantizer) -> None:
    layers = quantizer.layers()
    assert list(layers.values()) == ["Conv", "Conv", "Gemm"]
    gemm = list(layers)[2]
    assert _matrices(quantizer.quantize(MIN_MAX, only=[gemm])) == [(3, 768)]
    assert _matrices(quantizer.quantize(MIN_MAX, without=[gemm])) == [(12, 1, 3, 3), (12, 12, 3, 3)]


def _matrices(model: bytes) -> list[tuple[int, ...]]:
    """The shapes of the weights in INT8."""
    tensors = onnx.load_from_string(model).graph.initializer
    return [tuple(t.dims) for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]


@pytest.mark.parametrize("count", [1, 3, 67])
def test_any_number_of_samples_will_do(count: int) -> None:
    with Quantizer(FULL, SAMPLES[:count]) as quantizer:
        for method in METHODS:
            assert "QuantizeLinear" in operators(quantizer.quantize(method))


def test_an_old_opset_is_quantized_per_channel_once_it_was_raised() -> None:
    built = Graph(1, 8, 8, opset=11)
    x = built.relu(built.norm(built.conv(built.input, 12)))
    graph = check(built.classify(x, 3), "old.onnx")
    with Quantizer(graph.data, SAMPLES) as quantizer:
        small = quantizer.quantize(MIN_MAX)
    assert _matrices(small)[0] == (12, 1, 3, 3)
    nodes = onnx.load_from_string(small).graph.node
    assert any(one.op_type == "DequantizeLinear" and one.attribute for one in nodes)  # they know the axis
    assert likeness(run_model(small, HELD_OUT), run_model(graph.data, HELD_OUT))[1] > -0.1


def test_samples_that_do_not_fit_are_refused() -> None:
    with Quantizer(FULL, SAMPLES[:, :, :4]) as quantizer:
        with pytest.raises(ModelError, match="the model cannot be quantized"):
            quantizer.quantize(MIN_MAX)
        with pytest.raises(ModelError, match="the model cannot be quantized"):
            quantizer.best(lambda _: (0.0,))


def test_what_is_no_model_cannot_be_quantized() -> None:
    with pytest.raises(ModelError, match="cannot be simplified"):
        Quantizer(onnx.ModelProto().SerializeToString(), SAMPLES)


def test_an_infinite_mask_stays_in_float() -> None:
    """As attention to earlier tokens alone has it: a scale for it would leave nothing of the scores."""
    built = Graph(8, 8)
    masked = built.add(
        built.linear(built.input, 8), built.constant(np.triu(np.full((8, 8), -np.inf), 1).astype("f"))
    )
    attended = built.node("MatMul", built.node("Softmax", masked, axis=-1), built.input)
    model = built.finish(built.linear(built.node("Flatten", attended), 10))
    rows = np.random.default_rng(0).standard_normal((300, 8, 8)).astype(np.float32)
    with Quantizer(model, rows[:100]) as quantizer:
        small, method = quantizer.best(lambda data: likeness(run_model(data, rows), run_model(model, rows)))
    assert method == MIN_MAX  # histograms need ranges
    assert _matrices(small) == [(8, 8), (10, 64)]
    assert agreement(run_model(small, rows), run_model(model, rows)) > 0.95


def test_ids_are_no_activations() -> None:
    family = KINDS["bert"]
    with Quantizer(family.build(), family.inputs(64, seed=1)) as quantizer:
        small = quantizer.quantize(MIN_MAX)
        assert set(quantizer.layers().values()) == {"Gemm", "MatMul"}
    unseen = family.inputs(200, seed=2)
    assert agreement(run_model(small, unseen), run_model(family.build(), unseen)) > 0.95


@pytest.mark.parametrize(
    ("name", "operator", "left"),
    [
        ("lstm", "DynamicQuantizeLSTM", "LSTM"),
        ("bert", "MatMulInteger", ""),
        ("mlp", "MatMulInteger", "Gemm"),
    ],
)
def test_dynamic_int8_takes_products_and_recurrences(name: str, operator: str, left: str) -> None:
    family = KINDS[name]
    small = dynamic(family.build())
    found = operators(small)
    assert found[operator] >= 1
    assert found[left] == 0
    assert len(small) < 0.65 * len(family.build())
    check_model_file("int8-dynamic", small)
    unseen = family.inputs(200, seed=2)
    assert agreement(run_model(small, unseen), run_model(family.build(), unseen)) > 0.97


def test_dynamic_int8_leaves_convolutions_alone() -> None:
    found = operators(dynamic(FULL))
    assert found["Conv"] == 2
    assert found["MatMulInteger"] == 1
