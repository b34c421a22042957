"""Protobuf messages from strangers.

A field takes two bytes on the wire and up to seventy in memory, and entries of a map take microseconds each:
16 MiB of them would be a gigabyte and seconds in which nobody else is answered. So the fields of a large
message are counted before it is taken apart, by https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from inference_core.errors import InvalidInput
from inference_core.limits import MAX_STRINGS

MAX_FIELDS = MAX_STRINGS + 1024  # a string is a field; counting one takes most of a microsecond
SMALL = 1 << 13  # bytes of a message that cannot hold as many
_LONGEST, _MORE = 10, 0x80  # bytes of a number, and the bit that says that another one comes
_LARGEST, _LARGEST_TAG = (1 << 64) - 1, (1 << 32) - 1
_Kind = Any  # a descriptor: of Python's or of C's, which have no class in common
_M = TypeVar("_M", bound=Message)


def parse(kind: type[_M], data: bytes) -> _M:
    """The message of this kind in `data`; `InvalidInput` when it is none or has over `MAX_FIELDS` fields."""
    try:
        if len(data) > SMALL and _left(kind.DESCRIPTOR, data, 0, len(data), MAX_FIELDS) < 0:
            raise InvalidInput(f"message: more than {MAX_FIELDS} fields, that is the limit")
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"message: no {kind.DESCRIPTOR.name}, or a text in it is not UTF-8") from error


def _left(kind: _Kind, data: bytes, at: int, end: int, most: int) -> int:
    """How many of `most` fields are left after those in `data[at:end]` and in the messages inside; negative
    for too many. Raises `DecodeError` for what is no message: nothing is read here in another way than where
    it is taken apart."""
    nested, groups = _nested(kind), 0
    while at < end and most >= 0:
        tag, at = (data[at], at + 1) if data[at] < _MORE else _varint(data, at)
        most -= 1
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                inner = None if groups else nested.get(tag >> 3)
                if inner is not None and at + size <= end:
                    most = _left(inner, data, at, at + size, most)
                at += size
            case 3:  # what is in a group is nobody's here
                groups += 1
            case 4:
                groups -= 1
            case 5:
                at += 4
            case _:
                raise DecodeError("a field of no type")
        if at > end or tag > _LARGEST_TAG or groups < 0:
            raise DecodeError("a field that ends nowhere")
    return most


@cache
def _nested(kind: _Kind) -> Mapping[int, _Kind]:
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, of 64 bits, and where it ends."""
    value = shift = 0
    for here in range(at, min(at + _LONGEST, len(data))):
        byte = data[here]
        value |= (byte & 0x7F) << shift
        if byte < _MORE:
            return value & _LARGEST, here + 1
        shift += 7
    raise DecodeError("a number that ends nowhere")
