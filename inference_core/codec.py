"""Features packed for a slow link: raw DEFLATE, Huffman codes and runs only (RFC 1951).

Quantized features are mostly zeros and a few small values, without the repeated strings that longer matches
are looked for: those would take several times as long and save nothing.
"""

import zlib

from inference_core.errors import InvalidInput
from inference_core.tensors import Tensors, objects, to_bytes

NAME = "deflate"
_WINDOW = -15  # raw, without header and checksum: gRPC has its own


def pack(data: bytes | memoryview) -> bytes:
    """`data`, deflated."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW, 9, zlib.Z_RLE)
    return packer.compress(data) + packer.flush()


def packed(tensors: Tensors) -> Tensors:
    """Each tensor as one of type BYTES and shape [1], which holds its raw form, deflated."""
    return {name: objects([pack(to_bytes(array))]) for name, array in tensors.items()}


def unpack(data: bytes | memoryview, size: int) -> bytes:
    """What `pack` was given, which must be `size` bytes; `InvalidInput` when it is not or cannot be unpacked.

    No more than `size` bytes, and one, are ever made.
    """
    unpacker = zlib.decompressobj(_WINDOW)
    try:
        found = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise InvalidInput(f"packed tensor: {error}") from error
    if len(found) != size or not unpacker.eof or unpacker.unused_data:
        raise InvalidInput(f"packed tensor: does not unpack to {size} bytes")
    return found
