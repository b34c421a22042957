"""The bytes that go up are those of the message that protobuf itself would make."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_node.cloud import Query
from edge_node.envelope import envelope
from inference_core.manifest import TensorInfo
from inference_core.tensors import Parameter, to_request
from protos import open_inference_pb2 as oip

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=20)
NUMBERS = st.sampled_from(["f4", "u1", "i8", "?"]).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
PARAMETERS = st.dictionaries(
    st.text("abc_", min_size=1, max_size=4), st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
)


def query(inputs: dict[str, NDArray[Any]], parameters: dict[str, Parameter]) -> Query:
    expect = TensorInfo(name="logits", datatype="FP32", shape=(3,))
    return Query("own", "colors", "1", inputs, parameters, expect)


def expected(asked: Query, key: str, left_s: float) -> oip.ModelInferRequest:
    parameters = asked.parameters | {"tandem_deadline_ms": left_s * 1000}
    return to_request(asked.model, asked.version, asked.inputs, parameters, key)


@given(
    inputs=st.dictionaries(st.text("xyz", min_size=1, max_size=2), NUMBERS, max_size=3),
    parameters=PARAMETERS,
    left_s=st.floats(0, 10),
)
def test_it_is_the_same_message(
    inputs: dict[str, NDArray[Any]], parameters: dict[str, Parameter], left_s: float
) -> None:
    asked = query(inputs, parameters)
    made = oip.ModelInferRequest.FromString(envelope(asked, "7/own", left_s))
    assert made == expected(asked, "7/own", left_s)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_lengths_of_every_width(size: int) -> None:
    asked = query({"x": np.arange(size, dtype=np.uint8)}, {})
    assert oip.ModelInferRequest.FromString(envelope(asked, "1/", 1.0)) == expected(asked, "1/", 1.0)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.float32)[::2],
        np.array([b"one", b"", b"\0two"], dtype=object),
        np.array(1.0, np.float32),
    ],
    ids=["transposed", "strided", "encoded images", "scalar"],
)
def test_arrays_that_are_no_plain_block(array: NDArray[Any]) -> None:
    asked = query({"x": array}, {})
    assert oip.ModelInferRequest.FromString(envelope(asked, "1/", 1.0)) == expected(asked, "1/", 1.0)


def test_true_and_one_are_not_taken_for_each_other() -> None:
    for value in (True, 1, 1.0, False, 0, 0.0):
        asked = query({"x": np.zeros(3, np.float32)}, {"a": value})
        assert oip.ModelInferRequest.FromString(envelope(asked, "1/", 1.0)) == expected(asked, "1/", 1.0)
