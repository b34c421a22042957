"""Header blocks: the examples of RFC 7541 that use no Huffman code, and what is refused."""

import pytest

from benchmarks.hpack import decode, encode


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", {b"custom-key": b"custom-header"}),  # C.2.1
        ("040c2f73616d706c652f70617468", {b":path": b"/sample/path"}),  # C.2.2
        ("100870617373776f726406736563726574", {b"password": b"secret"}),  # C.2.3
        ("82", {b":method": b"GET"}),  # C.2.4
        ("20" + "88", {b":status": b"200"}),  # behind a table of size 0
        ("3fe11f" + "88", {b":status": b"200"}),  # and of size 4096
    ],
)
def test_the_standard_s_examples(block: str, headers: dict[bytes, bytes]) -> None:
    assert decode(bytes.fromhex(block)) == headers


def test_what_is_written_can_be_read() -> None:
    headers = {b":path": b"/a.B/c", b"te": b"trailers", b"x-empty": b"", b"x-long": b"v" * 126}
    assert decode(encode(headers)) == headers


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("0f2b05", "cut off"),
        ("400a6375", "cut off"),
        ("be", "forbidden"),  # C.3.2: index 62 is in the table of seen headers
        ("80", "forbidden"),
        ("41" + "8c" + "f1e3c2e5f23a6ba0ab90f4ff", "Huffman"),  # C.4.1
    ],
)
def test_what_is_not_understood_is_refused(block: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(bytes.fromhex(block))


def test_a_long_header_is_refused() -> None:
    with pytest.raises(ValueError, match="127 bytes; the limit is 126"):
        encode({b"x": b"v" * 127})
