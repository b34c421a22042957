"""Tensors as JSON values, as the Open Inference Protocol has them: flat or nested lists, row by row.

Numbers go from the text into an array without ever being Python objects: simdjson does it six times as fast.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import simdjson
from numpy.typing import NDArray

from inference_core.errors import InvalidInput
from inference_core.limits import MAX_STRINGS, check_count
from inference_core.tensors import count_of, datatype_of, dtype_of, objects

MAX_DEPTH = 16
_COUNTED = 0xFFFFFF  # simdjson counts the elements of an array so far
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
# simdjson's letters for what an array of it can be copied into: doubles, and 64-bit integers with and
# without a sign.
_BUFFERS: dict[str, tuple[Literal["d", "i", "u"], type[np.generic]]] = {
    "f": ("d", np.float64),
    "i": ("i", np.int64),
    "u": ("u", np.uint64),
}


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> NDArray[Any]:
    """The tensor given as JSON: a nested or flat simdjson array of numbers, booleans or strings (BYTES).

    Raises `InvalidInput` for values that do not fit the datatype, among them fractions for integer
    types, numbers out of range, and FP16, which the protocol gives no JSON form.
    """
    dtype = dtype_of(name, datatype)
    count = count_of(name, shape)
    if datatype == "FP16":
        raise InvalidInput(f"tensor {name!r}: FP16 has no JSON form, send it as raw bytes")
    if not isinstance(data, simdjson.Array):
        raise InvalidInput(f"tensor {name!r}: data must be a list")
    if datatype == "BYTES":
        check_count(f"tensor {name!r}", count, "strings", MAX_STRINGS)
        array = _strings(name, data, count)
    elif dtype.kind not in _BUFFERS:
        array = _numbers(name, datatype, dtype, data.as_list())
    else:
        array = _copied(name, datatype, dtype, data)
    if array.size != count:
        raise InvalidInput(f"tensor {name!r}: shape {list(shape)} is {count} elements, got {array.size}")
    return array.reshape(shape)


def to_json(array: NDArray[Any]) -> NDArray[Any] | list[str]:
    """`array` as what orjson writes as a flat, row-major list when it is told to take NumPy's arrays; a NaN
    or an infinity, which JSON lacks, becomes null."""
    if datatype_of(array) == "BYTES":
        return [item.decode("utf-8", "replace") for item in array.ravel()]
    return np.ascontiguousarray(array).reshape(-1)


def _copied(name: str, datatype: str, dtype: np.dtype[Any], data: simdjson.Array) -> NDArray[Any]:
    letter, wide = _BUFFERS[dtype.kind]
    try:
        values = np.frombuffer(data.as_buffer(of_type=letter), wide)
    except TypeError as error:
        raise InvalidInput(f"tensor {name!r}: data does not fit datatype {datatype}") from error
    except ValueError as error:
        raise InvalidInput(f"tensor {name!r}: a value is out of the range of {datatype}") from error
    if min(values.size, _COUNTED) != len(data):  # lists inside were taken apart: are they of one length?
        return _numbers(name, datatype, dtype, data.as_list())
    if dtype.kind == "f":
        return _finite(name, datatype, _narrowed(values, dtype))
    limits = np.iinfo(dtype)
    if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
        raise InvalidInput(f"tensor {name!r}: a value is out of the range of {datatype}")
    return values.astype(dtype)


def _narrowed(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _finite(name: str, datatype: str, array: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(array).all():
        raise InvalidInput(f"tensor {name!r}: a value is out of the range of {datatype}")
    return array


def _strings(name: str, data: simdjson.Array, count: int) -> NDArray[Any]:
    strings = list(itertools.islice(_encoded(name, data), count + 1))
    if len(strings) > count:  # who knows how many more: they are not looked at
        raise InvalidInput(f"tensor {name!r}: its shape is {count} elements, got more")
    return objects(strings)


def _encoded(name: str, data: simdjson.Array, depth: int = 1) -> Iterator[bytes]:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"tensor {name!r}: data is nested more than {MAX_DEPTH} deep")
    lists = None
    for item in data:
        if lists is None:
            lists = isinstance(item, simdjson.Array)
        if lists and isinstance(item, simdjson.Array):
            yield from _encoded(name, item, depth + 1)
        elif not lists and isinstance(item, str):
            yield item.encode()
        else:
            raise InvalidInput(f"tensor {name!r}: BYTES data must be strings in JSON")


def _numbers(name: str, datatype: str, dtype: np.dtype[Any], data: list[Any]) -> NDArray[Any]:
    # Before NumPy sees them: it would make numbers of strings, and room for the longest of them each.
    types = {kind for row in _rows(name, data) for kind in set(map(type, row))}
    if not types <= _JSON_TYPES[dtype.kind]:
        raise InvalidInput(f"tensor {name!r}: data does not fit datatype {datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(data, dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"tensor {name!r}: data is ragged or out of the range of {datatype}") from error
    return _finite(name, datatype, array) if dtype.kind == "f" else array


def _rows(name: str, data: list[Any], depth: int = 1) -> Iterable[list[Any]]:
    """The lists inside `data` that hold the values; a list among values counts as a value."""
    if depth > MAX_DEPTH:
        raise InvalidInput(f"tensor {name!r}: data is nested more than {MAX_DEPTH} deep")
    if data and all(isinstance(item, list) for item in data):
        for item in data:
            yield from _rows(name, item, depth + 1)
    else:
        yield data
