"""The infer messages over REST: bodies into requests, outputs into bodies, and what cannot be read."""

import json
import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from inference_core.errors import InvalidInput
from inference_core.rest import InferRequest, parse, render
from inference_core.tensors import DATATYPES, from_bytes, to_bytes

X: NDArray[Any] = np.array([[1.5, -2.0]], np.float32)


def part(name: str, array: NDArray[Any], datatype: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(array.shape)} | changes


def body(*inputs: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"inputs": list(inputs)} | changes).encode()


def plain(**changes: Any) -> bytes:
    """A good request as JSON."""
    return body(part("x", X, "FP32", data=X.tolist()), **changes)


def asked(**changes: Any) -> InferRequest:
    return parse(plain(**changes), None)


def test_json() -> None:
    request = asked(id="7", parameters={"a": 1, "b": "x", "c": True, "d": 0.5})
    assert (request.id, request.parameters) == ("7", {"a": 1, "b": "x", "c": True, "d": 0.5})
    assert request.inputs["x"].tolist() == X.tolist()
    assert (request.outputs, request.wanted, request.binary) == ({}, {}, False)


def test_tensors_behind_the_json_and_in_it() -> None:
    y = np.array([7, 8, 9], np.int64)
    head = body(
        part("x", X, "FP32", parameters={"binary_data_size": X.nbytes}),
        part("z", y, "INT64", data=[1, 2, 3]),
        part("y", y, "INT64", parameters={"binary_data_size": y.nbytes}),
    )
    for _ in range(2):  # the second time the head is known already
        request = parse(head + X.tobytes() + y.tobytes(), str(len(head)))
        assert request.inputs["x"].tolist() == X.tolist()
        assert request.inputs["y"].tolist() == [7, 8, 9]
        assert request.inputs["z"].tolist() == [1, 2, 3]


def test_requests_of_one_form_do_not_share_their_numbers() -> None:
    head = body(part("x", X, "FP32", parameters={"binary_data_size": X.nbytes}))
    first = parse(head + X.tobytes(), str(len(head)))
    second = parse(head + (X * 2).tobytes(), str(len(head)))
    assert (first.inputs["x"].tolist(), second.inputs["x"].tolist()) == (X.tolist(), (X * 2).tolist())


def test_outputs_as_bytes_and_as_classes() -> None:
    outputs = [
        {"name": "a"},
        {"name": "b", "parameters": {"binary_data": False}},
        {"name": "c", "parameters": {"classification": 3}},
    ]
    request = asked(outputs=outputs, parameters={"binary_data_output": True})
    assert request.binary
    assert request.outputs == {"a": True, "b": False, "c": True}
    assert request.wanted == {"a": 0, "b": 0, "c": 3}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "body: not JSON"),
        (b"[]", "body: must be a JSON object"),
        (b"{}", "inputs: must be a list of objects"),
        (plain(id=7), "id: must be a string, got 7"),
        (plain(parameters=[]), "parameters: must be an object, got a list"),
        (plain(parameters={"a": {}}), "parameters.a: must be a string, a number or a boolean"),
        (plain(parameters={"binary_data_output": 1}), "parameters.binary_data_output: must be true or false"),
        (plain(outputs=[{}]), "outputs.0.name: must be a string, got nothing"),
        (
            plain(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
            "outputs.0.parameters.binary_data:",
        ),
        (
            plain(outputs=[{"name": "y", "parameters": {"classification": 0}}]),
            "output 'y': parameter classification must be a whole number >= 1, got 0",
        ),
        (
            plain(outputs=[{"name": "y", "parameters": {"shared_memory_region": "mine"}}]),
            "output 'y': parameter shared_memory_region: shared memory is not served here",
        ),
        (
            body(part("x", X, "FP32", parameters={"shared_memory_region": "mine"})),
            "input 'x': parameter shared",
        ),
        (body(part("x", X, "FP32", data=[1.0, 2.0]), part("x", X, "FP32", data=[1.0, 2.0])), "given twice"),
        (body({"name": "x", "datatype": "FP32", "data": []}), "inputs.0.shape: must be a list"),
        (
            body(part("x", X, "FP32", parameters={"binary_data_size": 8})),
            "binary_data_size must be 0 to 0, got 8",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(content: bytes, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^") as caught:
        parse(content, None)
    assert text in str(caught.value)


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "99999999", "9" * 5000, "²"])
def test_bad_length_of_the_json(length: str) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length: must be 0 to"):
        parse(plain(), length)


def test_bytes_behind_the_last_input() -> None:
    with pytest.raises(InvalidInput, match="4 bytes after the last binary input"):
        parse(plain() + b"more", str(len(plain())))


ARRAYS = st.sampled_from([name for name in DATATYPES if name != "BYTES"]).flatmap(
    lambda name: hnp.arrays(DATATYPES[name], hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_outputs_as_bytes_come_back_as_they_were(array: NDArray[Any]) -> None:
    request = asked(parameters={"binary_data_output": True})
    content, length = render("m", "1", request, "id", {"y": array}, {"tandem_a": 1.5})
    assert length is not None
    head = json.loads(content[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "1", "id")
    assert head["parameters"] == {"tandem_a": 1.5}
    (output,) = head["outputs"]
    assert output["parameters"] == {"binary_data_size": len(to_bytes(array))}
    back = from_bytes("y", output["datatype"], output["shape"], content[length:])
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape


def test_outputs_each_in_its_own_form() -> None:
    request = asked(outputs=[{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}])
    content, length = render("m", "1", request, "", {"a": X, "b": X}, {})
    assert length is not None
    first, second = json.loads(content[:length])["outputs"]
    assert (first["parameters"], second["data"]) == ({"binary_data_size": 8}, [1.5, -2.0])
    assert content[length:] == X.tobytes()


def test_outputs_as_json_alone() -> None:
    strange = np.array([[np.nan, np.inf, 1.0]], np.float32)
    words = np.array([[b"a:0:red", b"\xff"]], dtype=object)
    content, length = render("m", "1", asked(), "", {"y": strange, "w": words}, {})
    assert length is None
    numbers, texts = json.loads(content)["outputs"]
    assert numbers["data"] == [None, None, 1.0]
    assert (texts["datatype"], texts["data"]) == ("BYTES", ["a:0:red", "\ufffd"])


# ---- requests there and back


PIECES = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(sorted(DATATYPES)),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    st.sampled_from(["flat", "nested", "binary"]),
    st.randoms(use_true_random=False),
)


def filled(datatype: str, shape: tuple[int, ...], random: Random) -> NDArray[Any]:
    """An array of this form; its floats are finite, and at times at the ends of what there is."""
    dtype, size = DATATYPES[datatype], math.prod(shape)
    array = np.empty(size, dtype)
    if datatype == "BYTES":
        array[:] = [random.choice(["", "tandem", 'ä\n"', "\x00"]).encode() for _ in range(size)]
    elif dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        array[:] = [random.choice([0.0, -0.0, most, -most, random.uniform(-9, 9)]) for _ in range(size)]
    else:
        low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        array[:] = [random.choice([low, high, random.randint(low, high)]) for _ in range(size)]
    return array.reshape(shape)


@given(st.lists(PIECES, max_size=3, unique_by=lambda piece: piece[0]), st.booleans())
def test_inputs_of_every_datatype_in_every_form(pieces: list[Any], as_bytearray: bool) -> None:
    described, tail, arrays = [], b"", {}
    for name, datatype, shape, form, random in pieces:
        array = arrays[name] = filled(datatype, shape, random)
        if form == "binary" or datatype == "FP16":  # which has no JSON form
            raw = to_bytes(array)
            described.append(part(name, array, datatype, parameters={"binary_data_size": len(raw)}))
            tail += raw
        else:
            texts = np.vectorize(bytes.decode, otypes=[object])(array) if datatype == "BYTES" else array
            data = texts.tolist() if form == "nested" and shape else texts.ravel().tolist()
            described.append(part(name, array, datatype, data=data))
    head = body(*described)
    content = bytearray(head + tail) if as_bytearray else head + tail
    for length in (str(len(head)), *([None] if not tail else [])):
        for _ in range(2):
            request = parse(content, length)
            assert request.inputs.keys() == arrays.keys()
            for name, array in arrays.items():
                found = request.inputs[name]
                assert (found.dtype, found.shape) == (array.dtype, array.shape)
                assert to_bytes(found) == to_bytes(array)
                # The elements of a BYTES tensor are taken apart for each request: they are its own.
                assert not found.flags.writeable or found.dtype == object


def test_binary_tensors_are_views_on_the_body() -> None:
    head = body(part("x", X, "FP32", parameters={"binary_data_size": X.nbytes}))
    content = bytearray(head + X.tobytes())
    found = parse(content, str(len(head))).inputs["x"]
    content[-4:] = np.float32(9).tobytes()
    assert found.tolist() == [[1.5, 9.0]]
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


# ---- heads that are known


def test_a_known_head_is_held_against_each_body() -> None:
    head = body(part("x", X, "FP32", parameters={"binary_data_size": X.nbytes}), id="known")
    for tail, text in (
        (X.tobytes(), None),
        (X.tobytes()[:-1], "input 'x': binary_data_size must be 0 to 7, got 8"),
        (X.tobytes() + b"x", "body: 1 bytes after the last binary input"),
        (b"", "input 'x': binary_data_size must be 0 to 0, got 8"),
        (X.tobytes(), None),
    ):
        if text is None:
            assert parse(head + tail, str(len(head))).inputs["x"].tolist() == X.tolist()
        else:
            with pytest.raises(InvalidInput) as caught:
                parse(head + tail, str(len(head)))
            assert str(caught.value) == text


def test_a_head_that_is_refused_is_refused_again_and_its_neighbour_is_not() -> None:
    good = body(part("x", X, "FP32", parameters={"binary_data_size": X.nbytes}), id="good")
    bad = good.replace(b"FP32", b"FP33")
    for _ in range(3):
        with pytest.raises(InvalidInput, match="tensor 'x': datatype 'FP33' is not one of"):
            parse(bad + X.tobytes(), str(len(bad)))
        assert parse(good + X.tobytes(), str(len(good))).id == "good"


def test_the_same_bytes_may_be_a_head_or_head_and_tail() -> None:
    """A shorter head is another request, though the body is the same."""
    inner = body(part("x", X, "UINT8", data=[1, 2]))
    outer = inner + b" " * 8
    assert parse(outer, str(len(outer))).inputs["x"].tolist() == [[1, 2]]
    with pytest.raises(InvalidInput, match="body: 8 bytes after the last binary input"):
        parse(outer, str(len(inner)))


def test_numbers_in_a_known_head_cannot_be_changed_for_the_next() -> None:
    content = plain(id="shared")
    for _ in range(2):
        found = parse(content, str(len(content))).inputs["x"]
        assert found.tolist() == X.tolist()
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 7


@pytest.mark.parametrize("size", [2047, 2048, 2049])
def test_heads_of_any_size_are_read_alike(size: int) -> None:
    """Small ones are remembered, others are not."""
    array = np.array([1, 2, 3], np.int16)
    described = part("x", array, "INT16", parameters={"binary_data_size": array.nbytes})
    head = body(described, id="i" * (size - len(body(described, id=""))))
    assert len(head) == size
    for factor in (1, 2):
        request = parse(head + (array * factor).tobytes(), str(size))
        assert request.inputs["x"].tolist() == (array * factor).tolist()


# ---- what is refused


def binary(**changes: Any) -> bytes:
    return body(part("x", X, "FP32", parameters={"binary_data_size": 8}) | changes)


def strings(data: list[Any], **changes: Any) -> bytes:
    return body({"name": "s", "datatype": "BYTES", "shape": [len(data)], "data": data} | changes)


def numbers(data: list[Any], datatype: str = "FP32") -> bytes:
    return body({"name": "n", "datatype": datatype, "shape": [2], "data": data})


MANY = [f"n{number}" for number in range(1000)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "body: not JSON"),
        (b"\xff\xfe", "body: not JSON"),
        (plain() + b"}", "body: not JSON"),
        (b"[" * 5000, "body: not JSON"),
        (b"null", "body: must be a JSON object"),
        (body(id="x").replace(b"[]", b"{}"), "inputs: must be a list of objects"),
        (body(1), "inputs: must be a list of objects"),  # type: ignore[arg-type]
        (plain(outputs={}), "outputs: must be a list of objects"),
        (plain(outputs=["y"]), "outputs: must be a list of objects"),
        (plain(id=None), "id: must be a string, got nothing"),
        (plain(id={}), "id: must be a string, got an object"),
        (plain(id="x" * 3).replace(b'"xxx"', b"9" * 30), "body: not JSON"),
        (plain(parameters={"a": None}), "parameters.a: must be a string, a number or a boolean"),
        (
            plain(outputs=[{"name": "y"}, {"name": "y", "parameters": 1}]),
            "outputs.1.parameters: must be an object, got 1",
        ),
        (binary(name=None), "inputs.0.name: must be a string, got nothing"),
        (binary(datatype=["FP32"]), "inputs.0.datatype: must be a string, got a list"),
        (binary(datatype="fp32"), "tensor 'x': datatype 'fp32' is not one of"),
        (binary(shape="12"), "inputs.0.shape: must be a list of whole numbers, got '12'"),
        (binary(shape=[1, 2.0]), "tensor 'x': shape [1, 2.0] must hold whole numbers >= 0"),
        (binary(shape=[1, -2]), "tensor 'x': shape [1, -2] must hold whole numbers >= 0"),
        (binary(shape=[True, 2]), "tensor 'x': shape [True, 2] must hold whole numbers >= 0"),
        (binary(shape=[1, [2]]), "inputs.0.shape: must be a list of whole numbers, got a list in it"),
        (binary(shape=[{}]), "inputs.0.shape: must be a list of whole numbers, got an object in it"),
        (binary(shape=[1] * 17), "inputs.0.shape: 17 dimensions, the limit is 16"),
        (binary(**dict.fromkeys(MANY)), "inputs.0: 1004 fields, the limit is 64"),
        (binary(parameters=dict.fromkeys(MANY, 1)), "inputs.0.parameters: 1000 of them, the limit is 64"),
        (binary(parameters={"a": [1] * 9}), "inputs.0.parameters.a: must be a string, a number or a bool"),
        (plain(**dict.fromkeys(MANY)), "fields, the limit is 64"),
        (plain(parameters=dict.fromkeys(MANY, 1)), "parameters: 1000 of them, the limit is 64"),
        (plain(outputs=[{"name": name} for name in MANY]), "outputs: 1000 tensors, the limit is 256"),
        (plain(outputs=[1] * 1000), "outputs: 1000 tensors, the limit is 256"),
        (body(*[part("x", X, "FP32")] * 1000), "inputs: 1000 tensors, the limit is 256"),
        (strings(["a"] * 4097), "tensor 's': 4097 strings, the limit is 4096"),
        (strings(["a"] * 4097, shape=[1]), "tensor 's': its shape is 1 elements, got more"),
        (strings(["a", ["b"]]), "tensor 's': BYTES data must be strings in JSON"),
        (strings([["a"], "b"]), "tensor 's': data is ragged"),
        (strings([["a"], [["b"], 1]], shape=[3]), "tensor 's': data is ragged"),
        (strings([[["a"]], [[1]]], shape=[2]), "tensor 's': BYTES data must be strings in JSON"),
        (strings([[]] * 70_000, shape=[0]), "tensor 's': data: 70000 lists, the limit is 65536"),
        (numbers([[1, 1]] * 70_000), "tensor 'n': data: 70000 lists, the limit is 65536"),
        (numbers([[1, 1], [1]]), "tensor 'n': data is ragged"),
        (numbers([[1, 1], [1, [1, 1]]]), "tensor 'n': data is ragged"),
        (numbers([1, [1, 1]]), "tensor 'n': data is ragged"),
        (numbers([1, []]), "tensor 'n': data is ragged"),
        (numbers([[1, 1], 1, 1]), "tensor 'n': data is ragged"),
        (numbers([[True], [[True]]], datatype="BOOL"), "tensor 'n': data does not fit datatype BOOL"),
        (numbers([True, [True]], datatype="BOOL"), "tensor 'n': data does not fit datatype BOOL"),
        (numbers([[[[1]] * 300] * 300]), "tensor 'n': data: 90301 lists, the limit is 65536"),
        (binary(shape=[1 << 40, 1 << 40]), "is over 281474976710656 elements"),
        (binary(shape=[1, 3]), "tensor 'x': FP32[1, 3] is 12 bytes, got 8"),
        (
            binary(parameters={"binary_data_size": -1}),
            "input 'x': binary_data_size must be a whole number >= 0, got -1",
        ),
        (
            binary(parameters={"binary_data_size": "8"}),
            "input 'x': binary_data_size must be a whole number >= 0, got '8'",
        ),
        (
            binary(parameters={"binary_data_size": True}),
            "input 'x': binary_data_size must be a whole number >= 0, got True",
        ),
        (binary(parameters={"binary_data_size": 9}), "input 'x': binary_data_size must be 0 to 8, got 9"),
        (binary(parameters={}), "tensor 'x': data must be a list"),
        (binary(datatype="BOOL", shape=[8]), "tensor 'x': a BOOL byte must be 0 or 1"),
    ],
)
def test_refusals_name_the_field_and_the_value(content: bytes, text: str) -> None:
    for _ in range(2):  # what is wrong stays wrong
        with pytest.raises(InvalidInput) as caught:
            parse(content + X.tobytes(), str(len(content)))
        assert text in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification", "x"]),
    JUNK | st.integers(0, 9),
    max_size=2,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from("xy") | JUNK,
        "shape": st.lists(st.integers(0, 3), max_size=2) | st.lists(st.integers(-2, 1 << 65)) | JUNK,
        "datatype": st.sampled_from(sorted(DATATYPES)) | JUNK,
        "data": st.lists(st.integers(-1, 300), max_size=4) | JUNK,
        "parameters": OPTIONS | JUNK,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | JUNK},
    optional={
        "id": st.text(max_size=4) | JUNK,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.text(max_size=2)}, optional={"parameters": OPTIONS})
        )
        | JUNK,
        "parameters": OPTIONS | JUNK,
    },
)
CONTENTS = st.one_of(
    (MESSAGES | JUNK).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=32),
    st.builds(
        lambda at, byte: plain()[:at] + byte + plain()[at + 1 :], st.integers(0, 90), st.binary(max_size=2)
    ),
)


@settings(max_examples=500)
@given(
    content=CONTENTS,
    tail=st.binary(max_size=12),
    length=st.none() | st.just("all") | st.integers(-1, 200).map(str) | st.text(max_size=4),
    as_bytearray=st.booleans(),
)
def test_whatever_comes_is_a_request_or_refused(
    content: bytes, tail: bytes, length: str | None, as_bytearray: bool
) -> None:
    whole = bytearray(content + tail) if as_bytearray else content + tail
    said = str(len(content)) if length == "all" else length
    outcomes = []
    for _ in range(2):
        try:
            request = parse(whole, said)
        except InvalidInput as error:
            outcomes.append(str(error))
            continue
        outcomes.append(f"{request}")
        assert all(isinstance(array, np.ndarray) for array in request.inputs.values())
        assert request.outputs.keys() == request.wanted.keys()
        # What was read can be answered.
        answer, size = render("m", "1", request, request.id, request.inputs, request.parameters)
        assert isinstance(json.loads(answer[:size]), dict)
    assert outcomes[0] == outcomes[1]
