"""An escalation as bytes: the part that is the same for many is made once, the tensors are copied once.

Messages of one protobuf type, one behind the other, are one message with the fields of all.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from edge_node.cloud import Query
from inference_core.tensors import Parameter, datatype_of, set_parameters, to_bytes
from protos import open_inference_pb2 as oip

DEADLINE = "tandem_deadline_ms"
_RAW_CONTENTS = oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2  # with its wire type: bytes
_Buffer = bytes | memoryview
_Layout = tuple[tuple[str, str, tuple[int, ...]], ...]


def envelope(query: Query, key: str, left_s: float) -> bytes:
    """A `ModelInferRequest` for `query` with the id `key`, to be answered within `left_s` seconds."""
    layout = tuple((name, datatype_of(array), array.shape) for name, array in query.inputs.items())
    own = oip.ModelInferRequest(id=key)
    own.parameters[DEADLINE].double_param = left_s * 1000
    # With their types: True and 1 would be one entry else.
    parameters = tuple((name, value, type(value)) for name, value in query.parameters.items())
    head = _head(query.model, query.version, layout, parameters)
    return b"".join((head, own.SerializeToString(), *_raw(query)))


def _raw(query: Query) -> Iterator[_Buffer]:
    """The field `raw_input_contents` as protobuf writes it, without the copies on the way through it."""
    for array in query.inputs.values():
        plain = array.dtype != np.dtype(object) and array.flags.c_contiguous
        data: _Buffer = array.data.cast("B") if plain and array.size else to_bytes(array)
        yield _prefix(len(data))
        yield data


@lru_cache(maxsize=64)
def _prefix(length: int) -> bytes:
    """The field's tag and the length of its bytes: seven bits in each byte, the lowest first."""
    prefix = bytearray([_RAW_CONTENTS])
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)


@lru_cache(maxsize=64)
def _head(
    model: str, version: str, layout: _Layout, parameters: tuple[tuple[str, Parameter, type], ...]
) -> bytes:
    message = oip.ModelInferRequest(model_name=model, model_version=version)
    for name, datatype, shape in layout:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    set_parameters(message.parameters, {name: value for name, value, _ in parameters})
    return message.SerializeToString()
