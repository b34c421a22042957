"""Every datatype through JSON and back, and what does not fit refused by name."""

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
import simdjson
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_core.errors import InvalidInput
from inference_core.tensor_json import from_json, to_json
from inference_core.tensors import DATATYPES, datatype_of
from tests.inference_core.test_tensors import INTEGERS, NUMBERS, objects, same, tensors


class Unreadable(Exception):
    """The text is no JSON that the parser takes."""


def read(datatype: str, shape: Sequence[int], data: object) -> NDArray[Any]:
    """`data` as text, parsed, as the tensor "x"."""
    try:
        parsed: Any = simdjson.Parser().parse(json.dumps([data]).encode())
    except (ValueError, RuntimeError) as error:
        raise Unreadable from error
    return from_json("x", datatype, shape, parsed[0])


def written(array: NDArray[Any]) -> list[Any]:
    """What a client reads of `array`."""
    values: list[Any] = json.loads(orjson.dumps(to_json(array), option=orjson.OPT_SERIALIZE_NUMPY))
    return values


@given(tensors([name for name in DATATYPES if name != "FP16"], finite=True, text=True), st.booleans())
def test_json_round_trip(array: NDArray[Any], nested: bool) -> None:
    data = array.tolist() if nested and array.ndim and array.dtype != object else written(array)
    assert same(read(datatype_of(array), array.shape, data), array)


def test_nested_strings_are_read_in_row_major_order() -> None:
    array = read("BYTES", [2, 2], [["a", "b"], ["ü", ""]])
    assert array.tolist() == [[b"a", b"b"], ["ü".encode(), b""]]


@given(
    st.sampled_from(list(DATATYPES)),
    st.lists(st.integers(0, 3), max_size=3),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=12,
    ),
)
def test_json_nonsense_is_refused_or_understood(datatype: str, shape: list[int], data: object) -> None:
    try:
        array = read(datatype, shape, data)
    except (InvalidInput, Unreadable):
        return
    assert array.shape == tuple(shape)
    assert datatype_of(array) == datatype


@pytest.mark.parametrize("datatype", INTEGERS)
def test_json_integers_reach_to_the_ends_of_their_range_and_no_further(datatype: str) -> None:
    ends = np.iinfo(DATATYPES[datatype])
    low, high = int(ends.min), int(ends.max)
    assert read(datatype, [4], [high, 1, low, high - 1]).tolist() == [high, 1, low, high - 1]
    for outside in (value for value in (low - 1, high + 1) if -(1 << 63) <= value < 1 << 64):
        with pytest.raises(InvalidInput, match=f"range of {datatype}"):
            read(datatype, [2], [1, outside])


@pytest.mark.parametrize(("datatype", "value"), [("FP32", 1e39), ("FP32", -1e39)])
def test_json_floats_do_not_become_infinities(datatype: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"range of {datatype}"):
        read(datatype, [1], [value])


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        *((name, [1.5]) for name in INTEGERS),
        *((name, [1.0]) for name in INTEGERS),
        *((name, [True]) for name in NUMBERS if name not in ("BOOL", "FP16")),
        *((name, [value]) for name in NUMBERS if name != "FP16" for value in ("1", None, {}, {"a": 1})),
        ("INT32", [1, True]),
        ("FP32", [1.5, False]),
        ("BOOL", [0]),
        ("BOOL", [True, 1]),
    ],
)
def test_json_values_of_another_type_are_refused(datatype: str, data: list[Any]) -> None:
    with pytest.raises(InvalidInput, match=f"fit datatype {datatype}"):
        read(datatype, [len(data)], data)


@pytest.mark.parametrize(
    ("shape", "data"), [([3], [1, [2, 3]]), ([2], [1, []]), ([4], [[1, 2], [3]]), ([2], [[[1]], [2]])]
)
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "UINT8"])
def test_ragged_lists_are_refused(datatype: str, shape: list[int], data: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="data is ragged"):
        read(datatype, shape, data)


def test_a_number_may_stand_in_a_list_of_its_own() -> None:
    """To find that out, every number would have to become an object."""
    assert read("FP32", [3], [1, [2], 3]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [1, 1.5, None, True, {"a": 1}])
def test_json_bytes_are_strings(value: object) -> None:
    with pytest.raises(InvalidInput, match="must be strings"):
        read("BYTES", [2], ["a", value])


@pytest.mark.parametrize("data", [[[1], [2, 3]], [[1, 2], [3]], [[], [1]], [[[1]], [[2, 3]]]])
def test_ragged_json_is_refused(data: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="ragged"):
        read("INT64", [3], data)


@pytest.mark.parametrize("datatype", ["INT32", "FP32", "BOOL", "BYTES"])
@pytest.mark.parametrize("depth", [17, 100])
def test_deeply_nested_json_is_refused(datatype: str, depth: int) -> None:
    data: list[Any] = []
    for _ in range(depth):
        data = [data]
    with pytest.raises(InvalidInput, match="16 deep"):
        read(datatype, [0], data)


def test_as_deep_as_a_shape_may_be_is_taken() -> None:
    data: Any = 7
    for _ in range(16):
        data = [data]
    assert read("INT8", [1] * 16, data).item() == 7


@pytest.mark.parametrize("datatype", ["FP32", "INT32", "BOOL"])
def test_strings_among_numbers_cost_no_memory(datatype: str) -> None:
    # NumPy would give each of the numbers as much room as the string takes: 40 GB here.
    text = json.dumps(["x" * 1_000_000, *[1] * 10_000]).encode()
    parsed = simdjson.Parser().parse(text)
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="does not fit"):
        from_json("x", datatype, [10_001], parsed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # To be looked at as a boolean, the string becomes a Python object once.
    assert peak < 1_000_000 + (1_000_000 if datatype == "BOOL" else 0)


@pytest.mark.parametrize("data", [None, 1, 1.5, "abc", {"0": 1}, True])
def test_json_data_is_a_list(data: object) -> None:
    with pytest.raises(InvalidInput, match="must be a list"):
        read("FP32", [1], data)


@pytest.mark.parametrize("data", [[], [1], [1, 2, 3], [[1], [2], [3]]])
def test_json_data_of_another_length_is_refused(data: list[Any]) -> None:
    with pytest.raises(InvalidInput, match=f"is 2 elements, got {len(data)}"):
        read("FP32", [2], data)


def test_fp16_has_no_json_form_to_read() -> None:
    with pytest.raises(InvalidInput, match="raw bytes"):
        read("FP16", [1], [1.0])


def test_what_json_lacks_becomes_null() -> None:
    assert written(np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32)) == [1.5, None, None, None]


def test_json_lists_hold_plain_values() -> None:
    for datatype in NUMBERS:
        (value,) = written(np.ones((1, 1), DATATYPES[datatype]))
        assert type(value) in (bool, int, float)
    assert written(objects([b"ok", b"\xff"], (2,))) == ["ok", "�"]


@pytest.mark.parametrize("datatype", ["FP8", "", "fp32"])
def test_unknown_datatypes_are_refused(datatype: str) -> None:
    with pytest.raises(InvalidInput, match="is not one of"):
        read(datatype, [0], [])
