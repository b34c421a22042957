"""The `Content-Encoding` of HTTP bodies: gzip and deflate, both ways."""

import asyncio
import re
import zlib

from inference_core.errors import InvalidInput, TooLarge

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": 32 + zlib.MAX_WBITS}
_NEVER = re.compile(r"q=0(\.0*)?")
_WORTH = 1200  # bytes of an answer from which on compressing it can save a packet
_FAST = 1  # the level for answers: the time of the others is the device's


async def inflated(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    """`inflate` beside the event loop: a few kB may become all that `limit` allows, and others wait."""
    return await asyncio.to_thread(inflate, body, encoding, limit) if encoding else body


def inflate(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    """The body without its `Content-Encoding`.

    Raises `InvalidInput` for an unknown or a broken one, `TooLarge` as soon as it grows over `limit` bytes.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise InvalidInput(f"Content-Encoding: {encoding!r} is not one of {', '.join(_WINDOWS)}, identity")
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"body: is not {encoding}") from error
    if len(content) > limit:
        raise TooLarge(f"body: over the limit of {limit} bytes when decompressed")
    if not inflater.eof:
        raise InvalidInput(f"body: its {encoding} ends too early")
    if inflater.unused_data:
        raise InvalidInput(f"body: {len(inflater.unused_data)} bytes after the end of its {encoding}")
    return content


def deflate(body: bytes, accept: str) -> tuple[bytes, str | None]:
    """The body as `Accept-Encoding` wants it, gzip before deflate, and the name of its encoding if any.

    What fits into one packet stays as it is.
    """
    wanted = [part.partition(";") for part in accept.lower().split(",")] if accept else []
    names = {name.strip() for name, _, quality in wanted if not _NEVER.fullmatch(quality.strip())}
    for name in _WINDOWS if len(body) >= _WORTH else ():
        if name in names:
            window = _WINDOWS["gzip"] if name == "gzip" else zlib.MAX_WBITS
            packer = zlib.compressobj(_FAST, zlib.DEFLATED, window)
            return packer.compress(body) + packer.flush(), name
    return body, None
