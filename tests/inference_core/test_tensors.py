"""Every datatype through every form on the wire, and what does not fit refused by name."""

import re
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from inference_core.engine import Engine
from inference_core.errors import InvalidInput
from inference_core.limits import MAX_PARAMETERS, MAX_STRINGS, MAX_TENSORS
from inference_core.tensors import (
    DATATYPES,
    Parameter,
    datatype_of,
    from_bytes,
    from_request,
    from_response,
    get_outputs,
    get_parameters,
    refuse_shared_memory,
    set_parameters,
    to_bytes,
    to_request,
    to_response,
)
from protos import open_inference_pb2 as oip
from tests.bundles import UNSURE, model_bytes, pixels, pool_and_classify

NUMBERS = [name for name in DATATYPES if name != "BYTES"]
INTEGERS = [name for name in NUMBERS if "INT" in name]
TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def objects(values: list[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str], finite: bool = False, text: bool = False) -> NDArray[Any]:
    datatype, shape = draw(st.sampled_from(datatypes)), draw(SHAPES)
    if datatype == "BYTES":
        count = int(np.prod(shape))
        element = st.text(st.characters(codec="utf-8"), max_size=9).map(str.encode) if text else st.binary()
        return objects(draw(st.lists(element, min_size=count, max_size=count)), shape)
    elements = {"allow_nan": False, "allow_infinity": False} if finite and datatype.startswith("FP") else None
    return draw(hnp.arrays(DATATYPES[datatype], shape, elements=elements))


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Equal to the bit, dtype and shape included."""
    return one.dtype == other.dtype and one.shape == other.shape and to_bytes(one) == to_bytes(other)


# ---- raw bytes


@given(tensors(list(DATATYPES)))
def test_raw_round_trip(array: NDArray[Any]) -> None:
    assert same(from_bytes("x", datatype_of(array), array.shape, to_bytes(array)), array)


@given(tensors(list(DATATYPES)), st.integers(1, 8), st.integers(0, 8))
def test_raw_bytes_may_lie_anywhere_in_a_body(array: NDArray[Any], before: int, behind: int) -> None:
    raw = to_bytes(array)
    body = memoryview(b"\xff" * before + raw + b"\xff" * behind)
    assert same(from_bytes("x", datatype_of(array), array.shape, body[before : before + len(raw)]), array)


@given(tensors(list(DATATYPES)), st.integers(-9, 9).filter(bool))
def test_raw_bytes_of_another_length_are_refused(array: NDArray[Any], difference: int) -> None:
    raw = to_bytes(array)
    wrong = raw[:difference] if difference < 0 else raw + b"\0" * difference
    if len(wrong) == len(raw):
        return
    with pytest.raises(InvalidInput, match="'x'"):
        from_bytes("x", datatype_of(array), array.shape, wrong)


@given(
    st.sampled_from(list(DATATYPES)), st.lists(st.integers(-2, 2**70), max_size=20), st.binary(max_size=40)
)
def test_raw_nonsense_is_refused_or_understood(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        array = from_bytes("x", datatype, shape, data)
    except InvalidInput:
        return
    assert array.shape == tuple(shape)
    assert to_bytes(array) == data


def test_raw_bytes_are_little_endian_and_row_major() -> None:
    assert to_bytes(np.array([[1, 2], [3, 256]], np.uint16)) == bytes([1, 0, 2, 0, 3, 0, 0, 1])
    assert to_bytes(np.array([[1, 2], [3, 4]], np.uint8).T) == bytes([1, 3, 2, 4])
    assert from_bytes("x", "INT32", [1], b"\x01\0\0\x80")[0] == -(2**31) + 1


def test_numbers_are_views_that_cannot_be_written() -> None:
    data = bytes(8)
    array = from_bytes("x", "FP32", [2], data)
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_engine_takes_numbers_at_an_odd_address() -> None:
    image = pixels(UNSURE)
    array = from_bytes("input", "FP32", image.shape, memoryview(b"?" + image.tobytes())[1:])
    assert not array.flags.aligned
    engine = Engine(model_bytes(pool_and_classify()), name="tiny")
    np.testing.assert_array_equal(
        engine.run({"input": array})["logits"], engine.run({"input": image})["logits"]
    )


@pytest.mark.parametrize("value", [2, 0x80, 0xFF])
def test_bool_bytes_are_0_or_1(value: int) -> None:
    with pytest.raises(InvalidInput, match="0 or 1"):
        from_bytes("x", "BOOL", [2], bytes([1, value]))
    assert from_bytes("x", "BOOL", [0], b"").size == 0


@pytest.mark.parametrize("datatype", ["", "fp32", "BF16", "FP8", "STRING", "float32", "FP32 "])
def test_unknown_datatypes_are_refused(datatype: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(repr(datatype))):
        from_bytes("x", datatype, [0], b"")


@pytest.mark.parametrize("shape", [[-1], [2, -3], [True], [1.0], ["1"], [None], "12", [[1]]])
def test_shapes_are_whole_numbers(shape: Any) -> None:
    with pytest.raises(InvalidInput, match="whole numbers"):
        from_bytes("x", "UINT8", shape, b"\0")


def test_shapes_have_limits() -> None:
    assert from_bytes("x", "UINT8", [1] * 16, b"\0").ndim == 16
    with pytest.raises(InvalidInput, match="17 dimensions"):
        from_bytes("x", "UINT8", [1] * 17, b"\0")


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [2**63, 0], [0, 10**30]])
def test_giant_axes_beside_an_empty_one_are_refused(datatype: str, shape: list[int]) -> None:
    with pytest.raises(InvalidInput, match="elements"):
        from_bytes("x", datatype, shape, b"")


@pytest.mark.parametrize("shape", [[2**62, 2**62], [10**30], [2**16] * 4])
def test_the_product_of_a_shape_does_not_wrap(shape: list[int]) -> None:
    with pytest.raises(InvalidInput):
        from_bytes("x", "FP32", shape, b"")


def test_scalars_and_empty_tensors() -> None:
    assert from_bytes("x", "FP64", [], struct.pack("<d", 2.5)) == 2.5
    assert from_bytes("x", "FP64", [3, 0, 2], b"").shape == (3, 0, 2)


# ---- BYTES


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\1\0\0", "length is cut off"),
        (b"\5\0\0\0abc", "5 bytes is cut off"),
        (b"\xff\xff\xff\xffabc", "4294967295 bytes is cut off"),
        (b"", "does not fit"),
        (b"\0\0\0\0" * 2, "does not fit"),
        (b"\0\0\0\0" * 100_000, "does not fit"),
        (b"\1\0\0\0a\0", "length is cut off"),
    ],
)
def test_broken_bytes_elements(data: bytes, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        from_bytes("x", "BYTES", [1], data)


def test_bytes_elements_may_be_empty_or_hold_anything() -> None:
    elements = [b"", b"\0", b"\xff\xfe", b"a" * 70_000]
    array = objects(elements, (2, 2))
    again = from_bytes("x", "BYTES", [2, 2], to_bytes(array))
    assert again.ravel().tolist() == elements
    assert all(type(item) is bytes for item in again.ravel())


def test_too_many_bytes_elements_stop_the_reader_at_once() -> None:
    data = b"\0\0\0\0" * 500_000
    tracemalloc.start()
    with pytest.raises(InvalidInput):
        from_bytes("x", "BYTES", [3], data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


# ---- dtypes


@pytest.mark.parametrize(("datatype", "dtype"), DATATYPES.items())
def test_every_dtype_has_its_name(datatype: str, dtype: np.dtype[Any]) -> None:
    assert datatype_of(np.zeros(1, dtype)) == datatype


@pytest.mark.parametrize("code", ["l", "q", "L", "Q", "i", "I"])
def test_dtypes_are_known_by_what_they_are_not_by_their_c_name(code: str) -> None:
    dtype = np.dtype(code)
    assert datatype_of(np.zeros(1, dtype)) == f"{'U' if dtype.kind == 'u' else ''}INT{dtype.itemsize * 8}"


@pytest.mark.parametrize(
    "dtype", [">f4", ">i8", "c8", "U3", "S3", "M8[s]", "m8[s]", "V2", [("a", "f4")], "g"]
)
def test_dtypes_without_a_name_are_refused(dtype: Any) -> None:
    with pytest.raises(InvalidInput, match="no Open Inference Protocol datatype"):
        to_bytes(np.zeros(1, dtype))


# ---- protobuf


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), tensors(list(DATATYPES)), max_size=4)
)
def test_protobuf_round_trip(given_tensors: dict[str, NDArray[Any]]) -> None:
    request = to_request("m", "1", given_tensors, {"tandem_x": 1}, "id-1")
    response = to_response("m", "1", given_tensors, {"tandem_x": 1}, "id-1")
    for read in (
        from_request(oip.ModelInferRequest.FromString(request.SerializeToString())),
        from_response(oip.ModelInferResponse.FromString(response.SerializeToString())),
    ):
        assert list(read) == list(given_tensors)
        assert all(same(read[name], array) for name, array in given_tensors.items())
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "id-1")
    assert (request.model_name, request.model_version, request.id) == ("m", "1", "id-1")


@given(tensors(list(TYPED)))
def test_typed_contents_are_read(array: NDArray[Any]) -> None:
    datatype = datatype_of(array)
    request, response = oip.ModelInferRequest(), oip.ModelInferResponse()
    for message in (
        request.inputs.add(name="x", datatype=datatype, shape=array.shape),
        response.outputs.add(name="x", datatype=datatype, shape=array.shape),
    ):
        getattr(message.contents, TYPED[datatype]).extend(array.ravel().tolist())
    for read in (from_request(request), from_response(response)):
        assert read["x"].shape == array.shape
        assert read["x"].dtype == array.dtype
        # Not to the bit: which of the many NaNs it is may change on the way through Python's floats.
        np.testing.assert_array_equal(read["x"], array)


def typed(datatype: str, shape: list[int], **contents: list[Any]) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest()
    item = message.inputs.add(name="x", datatype=datatype, shape=shape)
    item.contents.CopyFrom(oip.InferTensorContents(**contents))
    return message


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("UINT8", {"uint_contents": [0, 256]}),
        ("UINT16", {"uint_contents": [0, 65536]}),
        ("INT8", {"int_contents": [0, 128]}),
        ("INT8", {"int_contents": [0, -129]}),
        ("INT16", {"int_contents": [0, 1 << 15]}),
    ],
)
def test_typed_integers_out_of_range(datatype: str, contents: dict[str, list[int]]) -> None:
    with pytest.raises(InvalidInput, match=f"range of {datatype}"):
        from_request(typed(datatype, [2], **contents))


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        (typed("FP32", [3], fp32_contents=[1, 2]), "2 values in fp32_contents"),
        (typed("FP32", [1], fp64_contents=[1]), "0 values in fp32_contents"),
        (typed("FP16", [1], fp32_contents=[1]), "FP16 must be sent as raw"),
        (typed("FP9", [1], fp32_contents=[1]), "'FP9'"),
        (typed("FP32", [-1], fp32_contents=[1]), "whole numbers"),
        (typed("FP32", [0, 1 << 62, 1 << 62]), "elements"),
        (typed("BYTES", [2], bytes_contents=[b"a"]), "1 values in bytes_contents"),
    ],
)
def test_typed_contents_that_do_not_add_up(message: oip.ModelInferRequest, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        from_request(message)


def test_raw_contents_are_as_many_as_tensors() -> None:
    message = to_request("m", "", {"a": np.zeros(1), "b": np.zeros(1)}, {}, "")
    message.raw_input_contents.pop()
    with pytest.raises(InvalidInput, match="2 inputs but 1 raw input contents"):
        from_request(message)
    answer = to_response("m", "", {"a": np.zeros(1)}, {}, "")
    answer.raw_output_contents.append(b"")
    with pytest.raises(InvalidInput, match="1 outputs but 2 raw output contents"):
        from_response(answer)


def test_a_name_is_given_once() -> None:
    message = to_request("m", "", {"a": np.zeros(1)}, {}, "")
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    with pytest.raises(InvalidInput, match="'a' is given twice"):
        from_request(message)


def test_no_tensors_are_no_tensors() -> None:
    assert from_request(oip.ModelInferRequest()) == {}
    assert from_response(oip.ModelInferResponse()) == {}


@given(st.binary(max_size=200))
def test_any_message_is_refused_or_understood(data: bytes) -> None:
    message = typed("INT32", [2], int_contents=[1, 2])
    message.raw_input_contents.append(data)
    try:
        (array,) = from_request(message).values()
    except InvalidInput:
        return
    assert array.tobytes() == data


# ---- parameters


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8"), max_size=5),
        max_size=5,
    )
)
def test_parameters_round_trip(parameters: dict[str, Parameter]) -> None:
    message = to_request("m", "", {}, parameters, "")
    read = get_parameters(oip.ModelInferRequest.FromString(message.SerializeToString()).parameters)
    assert read == parameters
    assert {key: type(value) for key, value in read.items()} == {k: type(v) for k, v in parameters.items()}


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, "\ud800"])
def test_parameters_that_cannot_be_sent(value: Parameter) -> None:
    with pytest.raises(InvalidInput, match="parameter 'a'"):
        set_parameters(oip.ModelInferRequest().parameters, {"a": value})


def test_other_clients_parameters_are_read() -> None:
    message = oip.ModelInferRequest()
    message.parameters["big"].uint64_param = 2**64 - 1
    message.parameters["nothing"].SetInParent()
    message.parameters["zero"].int64_param = 0
    assert get_parameters(message.parameters) == {"big": 2**64 - 1, "zero": 0}


def test_outputs_asked_for() -> None:
    message = oip.ModelInferRequest()
    assert get_outputs(message) == {}
    message.outputs.add(name="plain")
    message.outputs.add(name="best").parameters["classification"].int64_param = 3
    assert get_outputs(message) == {"plain": {}, "best": {"classification": 3}}


def test_input_in_shared_memory() -> None:
    message = oip.ModelInferRequest()
    message.inputs.add(name="x", datatype="FP32", shape=[1]).parameters[
        "shared_memory_region"
    ].string_param = "mine"
    with pytest.raises(InvalidInput, match="input 'x': parameter shared_memory_region: shared memory is not"):
        from_request(message)
    refuse_shared_memory("input 'x'", {"binary_data_size": 4})


def test_too_many_of_what_costs_more_than_its_bytes() -> None:
    message = oip.ModelInferRequest()
    for number in range(MAX_TENSORS + 1):
        message.inputs.add(name=str(number), datatype="FP32", shape=(0,))
        message.outputs.add(name=str(number))
    with pytest.raises(InvalidInput, match="inputs: 257 tensors, the limit is 256"):
        from_request(message)
    with pytest.raises(InvalidInput, match="outputs: 257 tensors, the limit is 256"):
        get_outputs(message)
    for number in range(MAX_PARAMETERS + 1):
        message.parameters[str(number)].bool_param = True
    with pytest.raises(InvalidInput, match="parameters: 65 of them, the limit is 64"):
        get_parameters(message.parameters)
    many = oip.ModelInferRequest()
    many.inputs.add(name="s", datatype="BYTES", shape=(MAX_STRINGS + 1,))
    many.inputs[0].contents.bytes_contents.extend([b""] * (MAX_STRINGS + 1))
    with pytest.raises(InvalidInput, match="tensor 's': 4097 strings, the limit is 4096"):
        from_request(many)
    with pytest.raises(InvalidInput, match="tensor 's': 4097 strings, the limit is 4096"):
        from_bytes("s", "BYTES", (MAX_STRINGS + 1,), b"\0" * 4 * (MAX_STRINGS + 1))
