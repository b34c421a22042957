"""Which layers INT8 hurts, and how few of them stay in float."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationMethod

from benchmarks.networks import Graph
from inference_core.errors import ModelError
from tests.toolchain.families import FAMILIES
from toolchain.quantize import Quantizer
from toolchain.runs import run_model
from toolchain.sensitivity import Layer, rank_layers, spare_layers

LAYERS = 7
ROWS = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
MIN_MAX = CalibrationMethod.MinMax


def deep() -> bytes:
    """Seven linear layers; what goes into the fourth spans four orders of magnitude, and all of it counts."""
    graph = Graph(20)
    x = graph.input
    for at in range(LAYERS - 1):
        if at == 3:
            spread = np.ones(64, np.float32)
            spread[::2] = 1e-4
            # Tanh is computed in float, so that nobody but the product wants its result in INT8.
            x = graph.node("Mul", graph.node("Tanh", x), graph.constant(spread))
            x = graph.node("Elu", x)
            weights = np.random.default_rng(1).standard_normal((64, 64)) / 8 / spread[:, None]
            x = graph.relu(graph.node("MatMul", x, graph.constant(weights.astype(np.float32))))
        else:
            x = graph.relu(graph.linear(x, 64, gain=2))
    return graph.finish(graph.linear(x, 10))


@pytest.fixture(scope="module")
def quantizer() -> Iterator[Quantizer]:
    with Quantizer(deep(), ROWS) as quantizer:
        yield quantizer


def test_the_layer_that_int8_ruins_is_ranked_first(quantizer: Quantizer) -> None:
    wanted = run_model(deep(), ROWS)
    ranked = rank_layers(
        quantizer, MIN_MAX, lambda data: float(np.abs(run_model(data, ROWS) - wanted).mean())
    )
    assert {layer.name for layer in ranked} == quantizer.layers().keys()
    assert len(ranked) == LAYERS
    assert ranked[0].operator == "MatMul"
    assert ranked[0].name == list(quantizer.layers())[3]
    assert ranked[0].error > 3 * ranked[1].error
    assert [layer.error for layer in ranked] == sorted((layer.error for layer in ranked), reverse=True)


def test_a_layer_that_cannot_be_measured_is_the_most_sensitive(quantizer: Quantizer) -> None:
    names = list(quantizer.layers())
    models = {quantizer.quantize(MIN_MAX, only=[name]): name for name in names}

    def error(model: bytes) -> float:
        if models[model] == names[2]:
            raise ModelError("does not run")
        return math.nan if models[model] == names[4] else 1.0

    ranked = rank_layers(quantizer, MIN_MAX, error)
    assert {layer.name for layer in ranked[:2]} == {names[2], names[4]}
    assert [layer.error for layer in ranked] == [math.inf] * 2 + [1.0] * 5


def test_layers_are_spared_one_two_and_so_on_up_to_half(quantizer: Quantizer) -> None:
    ranked = [Layer(name, operator, 1.0) for name, operator in quantizer.layers().items()]
    names = tuple(layer.name for layer in ranked)
    tried: list[bytes] = []

    def never(model: bytes) -> bool:
        tried.append(model)
        return False

    assert spare_layers(quantizer, MIN_MAX, ranked, never) is None
    assert tried == [quantizer.quantize(MIN_MAX, without=names[:count]) for count in (1, 2, 3)]
    found = spare_layers(quantizer, MIN_MAX, ranked, lambda data: data == tried[1])
    assert found == (tried[1], names[:2])
    assert spare_layers(quantizer, MIN_MAX, ranked, lambda _: True) == (tried[0], names[:1])


def test_of_one_layer_none_is_spared() -> None:
    family = next(family for family in FAMILIES if family.name == "lstm")
    with Quantizer(family.build(), family.inputs(8, seed=1)) as quantizer:
        ranked = [Layer(name, operator, 1.0) for name, operator in quantizer.layers().items()]
        assert len(ranked) == 1
        assert spare_layers(quantizer, MIN_MAX, ranked, lambda _: True) is None
