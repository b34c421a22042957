"""Tensors on the wire: the Open Inference Protocol's data types, as bytes and protobuf.

Raw tensors are little-endian, row-major and unpadded. Arrays made from received bytes are read-only
views on them. A `BYTES` tensor is an object array of `bytes`, each element on the wire behind its
length as 4 little-endian bytes.
"""

import struct
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput
from inference_core.limits import MAX_DIMENSIONS, MAX_PARAMETERS, MAX_STRINGS, MAX_TENSORS, check_count
from protos import open_inference_pb2 as oip

Tensors = dict[str, NDArray[Any]]
Parameter = bool | int | float | str

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_CONTENTS = {
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
SHARED_MEMORY = "shared_memory_region"
_MAX_ELEMENTS = 1 << 48


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name for the array's dtype; `InvalidInput` where it has none."""
    name = _NAMES.get(array.dtype)
    if name is None:
        raise InvalidInput(f"dtype {array.dtype} has no Open Inference Protocol datatype")
    return name


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    """NumPy's dtype for the protocol's `datatype` of tensor `name`; `InvalidInput` where there is none."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise InvalidInput(f"tensor {name!r}: datatype {datatype!r} is not one of {', '.join(DATATYPES)}")
    return dtype


def count_of(name: str, shape: Sequence[int]) -> int:
    """The number of elements of `shape`; `InvalidInput` for one that no tensor here can have."""
    check_count(f"tensor {name!r}", len(shape), "dimensions", MAX_DIMENSIONS)
    elements = 1
    for d in shape:
        if type(d) is not int or d < 0:
            raise InvalidInput(f"tensor {name!r}: shape {list(shape)} must hold whole numbers >= 0")
        # An axis of length 0 makes the product 0, but NumPy refuses giant axes beside it all the same.
        elements *= d or 1
    if elements > _MAX_ELEMENTS:
        raise InvalidInput(f"tensor {name!r}: shape {list(shape)} is over {_MAX_ELEMENTS} elements")
    return 0 if 0 in shape else elements


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> NDArray[Any]:
    """The tensor whose raw form is `data`, without a copy.

    Raises `InvalidInput` when datatype, shape and length do not fit together.
    """
    dtype = dtype_of(name, datatype)
    count = count_of(name, shape)
    if datatype == "BYTES":
        return _elements(name, shape, count, memoryview(data))
    expected = count * dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(f"tensor {name!r}: {datatype}{list(shape)} is {expected} bytes, got {len(data)}")
    if datatype == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
        raise InvalidInput(f"tensor {name!r}: a BOOL byte must be 0 or 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _elements(name: str, shape: Sequence[int], count: int, data: memoryview) -> NDArray[Any]:
    check_count(f"tensor {name!r}", count, "strings", MAX_STRINGS)
    values: list[bytes] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise InvalidInput(f"tensor {name!r}: a BYTES length is cut off")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise InvalidInput(f"tensor {name!r}: a BYTES element of {length} bytes is cut off")
        values.append(bytes(data[at : at + length]))
        at += length
        if len(values) > count:
            break
    if len(values) != count:
        raise InvalidInput(f"tensor {name!r}: shape {list(shape)} does not fit its BYTES elements")
    return objects(values).reshape(shape)


def objects(values: Sequence[bytes]) -> NDArray[Any]:
    """A BYTES tensor of one axis."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def to_bytes(array: NDArray[Any]) -> bytes:
    """The raw form of `array`; the inverse of `from_bytes`."""
    if datatype_of(array) == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    return array.tobytes()


def to_request(
    model: str,
    version: str,
    inputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Parameter],
    request_id: str,
) -> oip.ModelInferRequest:
    """A `ModelInferRequest` that carries `inputs` in raw form."""
    message = oip.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_input_contents.append(to_bytes(array))
    set_parameters(message.parameters, parameters)
    return message


def from_request(message: oip.ModelInferRequest) -> Tensors:
    """The inputs of a request, in raw or typed form; `InvalidInput` when they do not add up."""
    return _tensors(message.inputs, message.raw_input_contents, "input")


def to_response(
    model: str,
    version: str,
    outputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Parameter],
    request_id: str,
) -> oip.ModelInferResponse:
    """A `ModelInferResponse` that carries `outputs` in raw form."""
    message = oip.ModelInferResponse(model_name=model, model_version=version, id=request_id)
    for name, array in outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_output_contents.append(to_bytes(array))
    set_parameters(message.parameters, parameters)
    return message


def from_response(message: oip.ModelInferResponse) -> Tensors:
    """The outputs of a response, in raw or typed form; `InvalidInput` when they do not add up."""
    return _tensors(message.outputs, message.raw_output_contents, "output")


def _tensors(metadata: Sequence[Any], raw: Sequence[bytes], what: str) -> Tensors:
    if raw and len(raw) != len(metadata):
        raise InvalidInput(f"{len(metadata)} {what}s but {len(raw)} raw {what} contents")
    check_count(f"{what}s", len(metadata), "tensors", MAX_TENSORS)
    tensors: Tensors = {}
    strings = 0
    for at, item in enumerate(metadata):
        name = item.name
        check_count(f"tensor {name!r}", len(item.shape), "dimensions", MAX_DIMENSIONS)
        shape = tuple(item.shape)
        if name in tensors:
            raise InvalidInput(f"{what} {name!r} is given twice")
        if item.parameters:
            check_count(f"{what} {name!r}: parameters", len(item.parameters), "of them", MAX_PARAMETERS)
            refuse_shared_memory(f"{what} {name!r}", item.parameters)
        if raw:
            tensors[name] = from_bytes(name, item.datatype, shape, raw[at])
        else:
            tensors[name] = _from_contents(name, item.datatype, shape, item.contents)
        strings += strings_in(tensors[name])
        check_count(f"{what}s", strings, "strings", MAX_STRINGS)
    return tensors


def strings_in(array: NDArray[Any]) -> int:
    """How many strings a tensor of BYTES holds; 0 for any other."""
    return array.size if array.dtype == object else 0


def _from_contents(name: str, datatype: str, shape: Sequence[int], contents: Any) -> NDArray[Any]:
    dtype = dtype_of(name, datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidInput(f"tensor {name!r}: {datatype} must be sent as raw contents")
    values = getattr(contents, field)
    if len(values) != count_of(name, shape):
        raise InvalidInput(
            f"tensor {name!r}: shape {list(shape)} does not fit the {len(values)} values in {field}"
        )
    if datatype == "BYTES":
        check_count(f"tensor {name!r}", len(values), "strings", MAX_STRINGS)
        return objects(values).reshape(shape)
    try:
        return np.fromiter(values, dtype, len(values)).reshape(shape)
    except OverflowError as error:
        raise InvalidInput(f"tensor {name!r}: a value is out of the range of {datatype}") from error


def get_outputs(message: oip.ModelInferRequest) -> dict[str, dict[str, Parameter]]:
    """The outputs that a request names, each with its parameters; none stands for all of them.

    Raises `InvalidInput` for too many of them.
    """
    check_count("outputs", len(message.outputs), "tensors", MAX_TENSORS)
    return {output.name: get_parameters(output.parameters) for output in message.outputs}


def refuse_shared_memory(tensor: str, parameters: Container[str]) -> None:
    """Raise `InvalidInput` when the parameters of `tensor`, so called, say that it is in shared memory."""
    if SHARED_MEMORY in parameters:
        raise InvalidInput(f"{tensor}: parameter {SHARED_MEMORY}: shared memory is not served here")


def set_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    """Write `parameters` into a protobuf `map<string, InferParameter>`.

    Raises `InvalidInput` for whole numbers over 64 bits and for strings that are not valid Unicode.
    """
    for key, value in parameters.items():
        try:
            if isinstance(value, bool):
                target[key].bool_param = value
            elif isinstance(value, int):
                target[key].int64_param = value
            elif isinstance(value, float):
                target[key].double_param = value
            else:
                target[key].string_param = value
        except ValueError as error:
            raise InvalidInput(f"parameter {key!r}: cannot be sent: {error}") from error


def get_parameters(source: Mapping[str, Any]) -> dict[str, Parameter]:
    """The set entries of a protobuf `map<string, InferParameter>` as plain values.

    Raises `InvalidInput` for too many of them.
    """
    check_count("parameters", len(source), "of them", MAX_PARAMETERS)
    return {
        key: getattr(value, choice)
        for key, value in source.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }
