"""The Open Inference Protocol's infer messages over REST: JSON, with tensors inside it or as bytes behind it.

Bodies come and go as bytes; what a transport must know beside them is a header: the length of the JSON part
where tensors follow it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
import simdjson
from numpy.typing import NDArray

from inference_core.classification import class_count
from inference_core.errors import InvalidInput
from inference_core.limits import (
    MAX_DIMENSIONS,
    MAX_LISTS,
    MAX_PARAMETERS,
    MAX_STRINGS,
    MAX_TENSORS,
    check_count,
)
from inference_core.tensor_json import from_json, to_json
from inference_core.tensors import (
    Parameter,
    Tensors,
    datatype_of,
    from_bytes,
    refuse_shared_memory,
    strings_in,
    to_bytes,
)

HEADER_LENGTH = "inference-header-content-length"
_MAX_DIGITS = 18  # Python refuses to read numbers of thousands of digits
_HINT = (
    "; NaN and Infinity are none, and where tensors follow it as bytes, Inference-Header-Content-Length "
    "says where it ends"
)
_MAX_FIELDS = 64  # the protocol has five
_SMALL = 2048  # bytes of a JSON part that is worth remembering
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a client asks. `outputs` are those it named, each with whether it is to come as bytes; none means
    all of them, as `binary` says. `wanted` has the same outputs, each with how many of its best classes it
    is to come as, 0 for the tensor itself."""

    id: str
    parameters: dict[str, Parameter]
    inputs: Tensors
    outputs: dict[str, bool]
    binary: bool
    wanted: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Input:
    """An input's place in the message: `size` bytes behind its JSON, or already an `array` from there."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    array: NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class _Head:
    """What the JSON part of a request says."""

    id: str
    parameters: dict[str, Parameter]
    inputs: tuple[_Input, ...]
    outputs: dict[str, bool]
    binary: bool
    wanted: dict[str, int]


def parse(body: bytes | bytearray, header_length: str | None) -> InferRequest:
    """The request in `body`, whose first `header_length` bytes are JSON: all of it where that is None.

    Binary tensors are views on `body`; what else is in the request is not to be changed, since many of the
    same form share it. Raises `InvalidInput`, which names the field.
    """
    if header_length is None:
        end, head = len(body), _head(body)
    else:
        end = _header_end(header_length, len(body))
        # A device says the same each time: only its numbers change.
        head = _known_head(bytes(body[:end])) if end <= _SMALL else _head(body[:end])
    inputs = _tensors(head.inputs, memoryview(body).toreadonly()[end:])
    return InferRequest(head.id, head.parameters, inputs, head.outputs, head.binary, head.wanted)


def _head(text: bytes | bytearray) -> _Head:
    try:
        message: Any = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError) as error:
        what = str(error).partition(":")[0]
        raise InvalidInput(f"body: not JSON ({what}){_HINT}") from error
    if not isinstance(message, simdjson.Object):
        raise InvalidInput("body: must be a JSON object")
    check_count("body", len(message), "fields", _MAX_FIELDS)
    parameters = _parameters(message)
    binary = _flag(parameters, "binary_data_output", default=False)
    outputs, wanted = {}, {}
    for at, item in enumerate(_objects(message, "outputs", needed=False)):
        where = f"outputs.{at}."
        name, own = _text(item, "name", where), _parameters(item, where)
        outputs[name] = _flag(own, "binary_data", where, default=binary)
        wanted[name] = class_count(name, own)
    inputs = _inputs(_objects(message, "inputs", needed=True))
    return _Head(_text(message, "id", default=""), parameters, inputs, outputs, binary, wanted)


def _inputs(items: list[simdjson.Object]) -> tuple[_Input, ...]:
    inputs: dict[str, _Input] = {}
    strings = 0
    for at, item in enumerate(items):
        made = _input(item, f"inputs.{at}.", MAX_LISTS // len(items))
        if made.name in inputs:
            raise InvalidInput(f"input {made.name!r} is given twice")
        inputs[made.name] = made
        strings += 0 if made.array is None else strings_in(made.array)
        check_count("inputs", strings, "strings", MAX_STRINGS)
    return tuple(inputs.values())


_known_head = lru_cache(maxsize=256)(_head)


def _header_end(header_length: str, size: int) -> int:
    digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_DIGITS
    if not digits or int(header_length) > size:
        raise InvalidInput(
            f"Inference-Header-Content-Length: must be 0 to {size}, the body's length, "
            f"got {header_length[:_MAX_DIGITS]!r}"
        )
    return int(header_length)


def _input(item: simdjson.Object, where: str, lists: int) -> _Input:
    name, datatype = _text(item, "name", where), _text(item, "datatype", where)
    shape = _shape(item, where)
    own = _parameters(item, where)
    size = own.get("binary_data_size")
    if size is None:
        refuse_shared_memory(f"input {name!r}", own)
        array = from_json(name, datatype, shape, item.get("data"), lists)
        array.flags.writeable = False  # it may be given to many
        return _Input(name, datatype, shape, 0, array)
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input {name!r}: binary_data_size must be a whole number >= 0, got {size!r}")
    return _Input(name, datatype, shape, size, None)


def _tensors(inputs: tuple[_Input, ...], binary: memoryview) -> Tensors:
    tensors: Tensors = {}
    at = strings = 0
    for item in inputs:
        array = item.array
        if array is None:
            left = len(binary) - at
            if item.size > left:
                words = f"binary_data_size must be 0 to {left}, got {item.size}"
                raise InvalidInput(f"input {item.name!r}: {words}")
            data = binary[at : at + item.size]
            array = from_bytes(item.name, item.datatype, item.shape, data)
            at += item.size
        strings += strings_in(array)
        check_count("inputs", strings, "strings", MAX_STRINGS)
        tensors[item.name] = array
    if at != len(binary):
        raise InvalidInput(f"body: {len(binary) - at} bytes after the last binary input")
    return tensors


def _objects(message: simdjson.Object, field: str, *, needed: bool) -> list[simdjson.Object]:
    """The JSON objects in the list `field`; an empty one where it may be left out."""
    value = message.get(field)
    if value is None and not needed:
        return []
    if not isinstance(value, simdjson.Array):
        raise InvalidInput(f"{field}: must be a list of objects")
    check_count(field, len(value), "tensors", MAX_TENSORS)
    items = list(value)
    objects = [item for item in items if isinstance(item, simdjson.Object)]
    if len(objects) != len(items):
        raise InvalidInput(f"{field}: must be a list of objects")
    for at, item in enumerate(objects):
        check_count(f"{field}.{at}", len(item), "fields", _MAX_FIELDS)
    return objects


def _text(item: simdjson.Object, field: str, where: str = "", default: str | None = None) -> str:
    value = item.get(field, default)
    if not isinstance(value, str):
        raise InvalidInput(f"{where}{field}: must be a string, got {_shown(value)}")
    return value


def _shape(item: simdjson.Object, where: str) -> tuple[int, ...]:
    value = item.get("shape")
    if not isinstance(value, simdjson.Array):
        raise InvalidInput(f"{where}shape: must be a list of whole numbers, got {_shown(value)}")
    check_count(f"{where}shape", len(value), "dimensions", MAX_DIMENSIONS)
    sizes: tuple[Any, ...] = tuple(value)
    if wrong := [size for size in sizes if isinstance(size, simdjson.Array | simdjson.Object)]:
        raise InvalidInput(f"{where}shape: must be a list of whole numbers, got {_shown(wrong[0])} in it")
    return sizes


def _parameters(item: simdjson.Object, where: str = "") -> dict[str, Parameter]:
    found = item.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, simdjson.Object):
        raise InvalidInput(f"{where}parameters: must be an object, got {_shown(found)}")
    check_count(f"{where}parameters", len(found), "of them", MAX_PARAMETERS)
    parameters: dict[str, Any] = dict(found.items())
    for name, value in parameters.items():
        if not isinstance(value, _PLAIN):
            raise InvalidInput(f"{where}parameters.{name}: must be a string, a number or a boolean")
    return parameters


def _flag(parameters: Mapping[str, Parameter], name: str, where: str = "", *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{where}parameters.{name}: must be true or false, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, simdjson.Array | simdjson.Object):
        return "a list" if isinstance(value, simdjson.Array) else "an object"
    return "nothing" if value is None else f"{value!r:.100}"


def render(
    model: str,
    version: str,
    request: InferRequest,
    request_id: str,
    outputs: Tensors,
    parameters: Mapping[str, Parameter],
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part where tensors follow it as bytes, else None."""
    described, chunks = [], []
    for name, array in outputs.items():
        output: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype_of(array)}
        if request.outputs.get(name, request.binary):
            chunks.append(to_bytes(array))
            output["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            output["data"] = to_json(array)
        described.append(output)
    answer = {
        "model_name": model,
        "model_version": version,
        "id": request_id,
        "parameters": parameters,
        "outputs": described,
    }
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *chunks]), len(header)) if chunks else (header, None)
