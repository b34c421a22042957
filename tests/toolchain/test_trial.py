"""Trial runs of a model as it came and as it will be used."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from inference_core.errors import ModelError
from inference_core.manifest import TensorInfo
from tests.toolchain import networks
from toolchain.trial import Trial, trial_rows

FLOATS = TensorInfo(name="input", datatype="FP32", shape=(4,))
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def linear(scale: float = 1.0, softmax: bool = False) -> bytes:
    """`input` `[batch, 4]` times weights, perhaps behind a Softmax."""
    product = "l" if softmax else "logits"
    nodes = [helper.make_node("MatMul", ["input", "w"], [product])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["l"], ["logits"], axis=-1))
    return networks.finish(nodes, [numpy_helper.from_array(scale * WEIGHTS, "w")], [4], [3])


@pytest.mark.parametrize(("fixed", "rows"), [(0, 3), (1, 1), (2, 2), (5, 5)])
def test_the_first_run_takes_as_many_rows_as_the_model_does(fixed: int, rows: int) -> None:
    answers = Trial("m", FLOATS, fixed).first(linear())
    np.testing.assert_allclose(answers, trial_rows(FLOATS, max(3, fixed))[:rows] @ WEIGHTS, rtol=1e-5)


def test_the_same_answers_pass_and_others_do_not() -> None:
    trial = Trial("m", FLOATS, 0)
    answers = trial.first(linear())
    info = TensorInfo(name="logits", datatype="FP32", shape=(3,))
    assert trial.last(linear(1.0001), answers, stripped=False) == info
    with pytest.raises(ModelError, match=r"^the answers to one input differ by 0\.\d+ before and after"):
        trial.last(linear(1.01), answers, stripped=False)


def test_a_softmax_that_was_taken_off_is_put_on_for_the_comparison() -> None:
    trial = Trial("m", FLOATS, 0)
    answers = trial.first(linear(softmax=True))
    assert trial.last(linear(), answers, stripped=True).shape == (3,)
    with pytest.raises(ModelError, match="before and after"):
        trial.last(linear(2.0), answers, stripped=True)


def test_other_numbers_of_classes_are_told_apart() -> None:
    trial = Trial("m", FLOATS, 0)
    with pytest.raises(ModelError, match=r"^the shapes \[3, 3\] and \[3, 2\] differ before and after"):
        trial.last(linear(), trial.first(linear())[:, :2], stripped=False)


@pytest.mark.parametrize("datatype", ["INT64", "INT32", "UINT8"])
def test_whole_numbers_are_ids_that_any_vocabulary_has(datatype: str) -> None:
    rows = trial_rows(TensorInfo(name="ids", datatype=datatype, shape=(16,)), 4)
    assert rows.shape == (4, 16)
    assert rows.dtype == np.dtype(datatype.lower())
    assert set(rows.ravel().tolist()) == {0, 1}


def test_rows_are_the_same_every_time() -> None:
    np.testing.assert_array_equal(trial_rows(FLOATS, 3), trial_rows(FLOATS, 3))
    assert len(np.unique(trial_rows(FLOATS, 3))) == 12
