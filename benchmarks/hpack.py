"""Header blocks of HTTP/2 (RFC 7541), as far as a gRPC client needs that forbids the table of seen headers.

Literals are written plain. In what is read, indices into the static table and plain literals are known;
Huffman code is not, since gRPC's own library uses it for binary headers only.
"""

Headers = dict[bytes, bytes]

_STATIC: tuple[tuple[bytes, bytes], ...] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"),
    (b":path", b"/index.html"), (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"),
    (b":status", b"204"), (b":status", b"206"), (b":status", b"304"), (b":status", b"400"),
    (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""),
    (b"accept", b""), (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""),
    (b"authorization", b""), (b"cache-control", b""), (b"content-disposition", b""),
    (b"content-encoding", b""), (b"content-language", b""), (b"content-length", b""),
    (b"content-location", b""), (b"content-range", b""), (b"content-type", b""), (b"cookie", b""),
    (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""), (b"host", b""),
    (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""),
    (b"max-forwards", b""), (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""),
    (b"referer", b""), (b"refresh", b""), (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""),
    (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip


def encode(headers: Headers) -> bytes:
    """`headers` as literals that nobody is to remember."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())


def decode(block: bytes) -> Headers:
    """The headers of `block`. Raises `ValueError` for one that is cut off or uses what was forbidden."""
    headers: Headers = {}
    at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:  # name and value by index
                index, at = _number(block, at, 7)
                name, value = _known(index)
            elif first & 0xE0 == 0x20:  # the table's new size
                _, at = _number(block, at, 5)
                continue
            else:  # a literal, to be remembered (6 bits of index) or not (4 bits)
                index, at = _number(block, at, 6 if first & 0x40 else 4)
                if index:
                    name = _known(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
            headers[name] = value
    except IndexError as error:
        raise ValueError(f"a header block of {len(block)} bytes is cut off") from error
    return headers


def _known(index: int) -> tuple[bytes, bytes]:
    if not 1 <= index <= len(_STATIC):
        raise ValueError(f"header {index} of a table that was forbidden")
    return _STATIC[index - 1]


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The number whose first `bits` bits end the byte at `at`, and where it ends."""
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte, at = block[at], at + 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if block[at] & 0x80:
        raise ValueError("a header in Huffman code, which is not read here")
    size, at = _number(block, at, 7)
    if at + size > len(block):
        raise IndexError
    return block[at : at + size], at + size


def _text(value: bytes) -> bytes:
    if len(value) > 126:
        raise ValueError(f"a header of {len(value)} bytes; the limit is 126")
    return bytes((len(value),)) + value
