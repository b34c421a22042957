"""Messages from strangers: what is none, and what has more fields than anybody needs."""

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from inference_core.errors import InvalidInput
from inference_core.limits import MAX_STRINGS
from inference_core.tensors import objects, to_request
from inference_core.wire import MAX_FIELDS, SMALL, parse
from protos import fleet_pb2 as fleet
from protos import open_inference_pb2 as oip

Request = oip.ModelInferRequest


def with_parameters(count: int) -> bytes:
    message = Request()
    for number in range(count):
        message.parameters[str(number)].bool_param = True
    return message.SerializeToString()


def within(field: int, data: bytes) -> bytes:
    """`data` as the only field of this number."""
    size, head = len(data), bytearray([field << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + data


def test_a_message() -> None:
    assert parse(oip.ModelReadyRequest, b"\x0a\x01a").name == "a"
    with pytest.raises(InvalidInput, match="message: no ModelReadyRequest, or a text in it is not UTF-8"):
        parse(oip.ModelReadyRequest, b"\x0a\x7f")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_parameters(MAX_FIELDS), id="parameters"),
        pytest.param(b"\x22\x00" * (MAX_FIELDS + 1), id="entries without a name"),
        pytest.param(b"\x2a\x00" * (MAX_FIELDS + 1), id="inputs"),
        pytest.param(b"\x3a\x00" * (MAX_FIELDS + 1), id="raw contents"),
        pytest.param(within(5, b"\x22\x00" * MAX_FIELDS), id="parameters of an input"),
        pytest.param(within(5, within(5, b"\x42\x00" * MAX_FIELDS)), id="strings"),
        pytest.param(b"\x98\x06\x01" * (MAX_FIELDS + 1), id="fields of no name"),
        pytest.param(b"\x0b" * (SMALL + 1), id="groups"),
    ],
)
def test_too_many_fields(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=f"message: more than {MAX_FIELDS} fields, that is the limit"):
        parse(Request, data)


def test_tensors_of_a_sample_are_counted_too() -> None:
    data = within(11, b"\x12\x00" * MAX_FIELDS)
    with pytest.raises(InvalidInput, match="fields"):
        parse(fleet.PutSampleRequest, data)


def test_as_many_strings_as_a_tensor_may_have() -> None:
    message = Request()
    message.inputs.add(name="x").contents.bytes_contents.extend([b"ab"] * MAX_STRINGS)
    assert len(parse(Request, message.SerializeToString()).inputs[0].contents.bytes_contents) == MAX_STRINGS


def test_large_messages_arrive_whole() -> None:
    array = np.random.default_rng(5).normal(size=(3, 224, 224)).astype(np.float32)
    message = to_request("m", "1", {"x": array, "y": objects([b"a" * 99_999])}, {"a": 1, "b": 0.5}, "id")
    message.inputs.add(name="z").contents.fp32_contents.extend([0.5] * 100_000)
    assert parse(Request, message.SerializeToString()) == message


NONSENSE: list[tuple[str, Callable[[random.Random], bytes]]] = [
    ("a number without an end", lambda _: b"\xff" * (4 << 20)),
    ("numbers of zeros", lambda _: b"\x80" * (4 << 20)),
    ("a length over the end", lambda _: b"\x2a\xff\xff\xff\xff\x0f" + bytes(SMALL)),
    ("noise", lambda rng: rng.randbytes(1 << 20)),
]


@pytest.mark.parametrize("make", [make for _, make in NONSENSE], ids=[name for name, _ in NONSENSE])
def test_nonsense_is_refused_at_once(make: Callable[[random.Random], bytes]) -> None:
    data = make(random.Random(5))
    began = time.process_time()
    with pytest.raises(InvalidInput):
        parse(Request, data)
    assert time.process_time() - began < 1.0  # it takes some milliseconds, and would take minutes


def overlong(number: int) -> bytes:
    """A number in ten bytes, of which protobuf looks at 64 bits."""
    digits = [number >> 7 * at & 0x7F for at in range(10)]
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


@pytest.mark.parametrize(
    "before",
    [
        b"\x0a" + overlong(1 << 64),
        b"\x0a" + overlong(0),
        b"\x0a" + overlong(3) + b"abc",
        overlong(10) + b"\x01a",
        overlong((1 << 35) + 10) + b"\x01a",
        b"\x08" + overlong((1 << 70) - 1),
        b"\x0b\x2a\x7f\x0c",
        b"\x0b\x0c",
        b"\x0c",
        b"\x0e",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3a" + overlong((1 << 64) - 8),
        b"\x09" + bytes(8),
        b"\x0d" + bytes(4),
    ],
    ids=bytes.hex,
)
def test_nothing_hides_what_comes_after_it(before: bytes) -> None:
    """Whatever protobuf makes of these bytes, no more than the limit of fields is ever taken apart."""
    many = before + b"\x2a\x00" * (MAX_FIELDS + 1) + within(7, bytes(SMALL))
    with pytest.raises(InvalidInput):
        parse(Request, many)
    few = before + b"\x2a\x00" * 100 + within(7, bytes(SMALL))
    try:
        expected = Request.FromString(few)
    except DecodeError:
        expected = None
    try:
        found = parse(Request, few)
    except InvalidInput:
        found = None
    assert found is None or found == expected


def test_what_is_in_a_group_is_nobodys() -> None:
    """Of a field that nobody knows: its inner fields have numbers of their own."""
    data = b"\x63" + b"\x2a\x01\xff" + b"\x64" + within(7, bytes(SMALL))
    assert len(parse(Request, data).raw_input_contents) == 1


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_counting_changes_nothing(pieces: list[bytes], random: random.Random) -> None:
    """A message is taken apart, or refused, just as it would be without the count."""
    data = b"".join(within(random.choice((4, 5, 6, 7, 9)), piece) for piece in pieces)
    padded = data + within(7, bytes(SMALL))
    try:
        expected = Request.FromString(padded)
    except Exception:  # noqa: BLE001 - whatever protobuf says of what is none
        with pytest.raises(InvalidInput):
            parse(Request, padded)
    else:
        assert parse(Request, padded) == expected
