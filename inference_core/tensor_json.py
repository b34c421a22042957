"""Tensors as JSON values, as the Open Inference Protocol has them: flat or nested lists, row by row.

Numbers go from the text into an array without ever being Python objects: simdjson does it six times as fast.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import simdjson
from numpy.typing import NDArray

from inference_core.errors import InvalidInput
from inference_core.limits import MAX_LISTS, MAX_STRINGS, check_count
from inference_core.tensors import count_of, datatype_of, dtype_of, objects

MAX_DEPTH = 16
_T = TypeVar("_T", bool, str)
_COUNTED = 0xFFFFFF  # simdjson counts the elements of an array so far
# simdjson's letters for what an array of it can be copied into: doubles, and 64-bit integers with and
# without a sign.
_BUFFERS: dict[str, tuple[Literal["d", "i", "u"], type[np.generic]]] = {
    "f": ("d", np.float64),
    "i": ("i", np.int64),
    "u": ("u", np.uint64),
}


def from_json(
    name: str, datatype: str, shape: Sequence[int], data: object, lists: int = MAX_LISTS
) -> NDArray[Any]:
    """The tensor given as JSON: a simdjson array of numbers, booleans or strings (BYTES), flat or nested in
    up to so many `lists`.

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
        array = objects(
            [item.encode() for item in _values(name, datatype, _leaves(name, data, lists), count, str)]
        )
    elif dtype.kind in _BUFFERS:
        array = _copied(name, datatype, dtype, data, lists)
    else:
        array = np.array(_values(name, datatype, _leaves(name, data, lists), count, bool), dtype)
    if array.size != count:
        raise InvalidInput(f"tensor {name!r}: shape {list(shape)} is {count} elements, got {array.size}")
    return array.reshape(shape)


def to_json(array: NDArray[Any]) -> NDArray[Any] | list[str]:
    """`array` as what orjson writes as a flat, row-major list when it is told to take NumPy's arrays; a NaN
    or an infinity, which JSON lacks, becomes null."""
    if datatype_of(array) == "BYTES":
        return [item.decode("utf-8", "replace") for item in array.ravel()]
    return np.ascontiguousarray(array).reshape(-1)


def _copied(name: str, datatype: str, dtype: np.dtype[Any], data: simdjson.Array, lists: int) -> NDArray[Any]:
    letter, wide = _BUFFERS[dtype.kind]
    try:
        values = np.frombuffer(data.as_buffer(of_type=letter), wide)
    except TypeError as error:
        raise InvalidInput(f"tensor {name!r}: data does not fit datatype {datatype}") from error
    except ValueError as error:
        raise InvalidInput(f"tensor {name!r}: a value is out of the range of {datatype}") from error
    leaves = _leaves(name, data, lists)
    # Lists among the values have been taken apart: where that leaves the number as it was, nobody can tell.
    if len(leaves[0]) < _COUNTED and values.size != len(leaves) * len(leaves[0]):
        raise InvalidInput(f"tensor {name!r}: data is ragged")
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


def _values(name: str, datatype: str, leaves: list[simdjson.Array], count: int, kind: type[_T]) -> list[_T]:
    """The values of a type that simdjson does not copy by itself; one too many where there are more."""
    values: list[_T] = []
    for value in itertools.chain.from_iterable(leaves):
        if type(value) is not kind:
            words = (
                "BYTES data must be strings in JSON"
                if kind is str
                else f"data does not fit datatype {datatype}"
            )
            raise InvalidInput(f"tensor {name!r}: {words}")
        values.append(value)
        if len(values) > count:  # who knows how many more: they are not looked at
            raise InvalidInput(f"tensor {name!r}: its shape is {count} elements, got more")
    return values


def _leaves(name: str, data: simdjson.Array, most: int) -> list[simdjson.Array]:
    """The lists that hold the values of a list, flat or of lists of one length; what is in them is not
    looked at. Raises `InvalidInput` for lists of several lengths and for too many of them."""
    level, lists = [data], 0
    for _ in range(MAX_DEPTH):
        if any(len(items) != len(level[0]) for items in level):
            raise InvalidInput(f"tensor {name!r}: data is ragged")
        if not isinstance(next(iter(level[0]), None), simdjson.Array):
            return level
        size = len(level) * len(level[0])
        lists += size
        check_count(f"tensor {name!r}: data", lists, "lists", most)
        level = [item for items in level for item in items if isinstance(item, simdjson.Array)]
        if len(level) != size:
            raise InvalidInput(f"tensor {name!r}: data is ragged")
    raise InvalidInput(f"tensor {name!r}: data is nested more than {MAX_DEPTH} deep")
