"""Models over many samples: what they answer, how alike, how long they take."""

import numpy as np
import onnx
import pytest

from inference_core.engine import Engine
from inference_core.errors import ModelError
from tests.toolchain import families, networks
from toolchain.runs import accuracy, agreement, latencies, likeness, run, run_model

SEQUENCE = next(family for family in families.FAMILIES if family.name == "lstm")


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250])
def test_chunks_make_no_difference(count: int) -> None:
    samples = networks.inputs(count, seed=4)
    model = networks.full_network()
    whole = Engine(model, name="m").run({"input": samples})["logits"]
    np.testing.assert_allclose(run_model(model, samples), whole, atol=1e-5)
    assert run_model(model, samples).shape == (count, 3)


def test_all_outputs_are_given() -> None:
    given = run(Engine(SEQUENCE.build(), name="m"), {"input": SEQUENCE.inputs(150, seed=1)})
    assert {name: array.shape for name, array in given.items()} == {"logits": (150, families.CLASSES)}


def test_a_model_with_more_than_one_output_is_refused() -> None:
    loaded = onnx.load_from_string(networks.full_network())
    loaded.graph.output.append(onnx.helper.make_tensor_value_info("inner", 1, ["batch", 12, 8, 8]))
    with pytest.raises(ModelError, match="the model has 1 inputs and 2 outputs, not 1"):
        run_model(loaded.SerializeToString(), networks.inputs(2))


def test_accuracy_and_agreement_are_shares_of_rows() -> None:
    logits = np.array([[1, 2], [3, 0], [0, 1], [5, 4]], np.float32)
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75
    assert agreement(logits, -logits) == 0.0
    assert agreement(logits, 2 * logits) == 1.0


def test_of_two_that_agree_as_often_the_nearer_is_more_alike() -> None:
    wanted = np.array([[1, 2], [3, 0]], np.float32)
    near, far, other = wanted + 0.1, wanted + 0.2, wanted[:, ::-1]
    assert likeness(near, wanted) > likeness(far, wanted) > likeness(other, wanted)
    assert likeness(wanted, wanted) == (1.0, 0.0)


def test_latencies_tell_a_slow_call_from_a_fast_one() -> None:
    calls = {"slow": 0, "fast": 0}

    def work(name: str, turns: int) -> None:
        calls[name] += 1
        np.linalg.svd(np.ones((turns, turns)))

    found = latencies({"slow": lambda: work("slow", 60), "fast": lambda: work("fast", 4)})
    assert found.keys() == {"slow", "fast"}
    assert 0 < found["fast"].p50 < found["slow"].p50
    assert all(latency.p50 <= latency.p99 for latency in found.values())
    assert min(calls.values()) >= 2 * 32  # a call to warm up and one that counts, in every turn
    assert latencies({}) == {}
