"""Compressed bodies: both ways, and those that are broken or grow too large."""

import gzip
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.content_encoding import deflate, inflate
from inference_core.errors import InvalidInput, TooLarge


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compression(encoding: str, pack: Any) -> None:
    content = b"tandem" * 1000
    assert inflate(pack(content), encoding, len(content)) == content
    assert inflate(pack(content), f" {encoding.upper()} ", len(content)) == content
    with pytest.raises(TooLarge, match=f"over the limit of {len(content) - 1} bytes when decompressed"):
        inflate(pack(content), encoding, len(content) - 1)
    with pytest.raises(InvalidInput, match=f"body: is not {encoding}"):
        inflate(b"hello", encoding, 100)
    with pytest.raises(InvalidInput, match=f"body: its {encoding} ends too early"):
        inflate(pack(content)[:-4], encoding, len(content))
    with pytest.raises(InvalidInput, match=f"body: 4 bytes after the end of its {encoding}"):
        inflate(pack(content) + b"more", encoding, len(content))
    packed, name = deflate(content, encoding)
    assert name == encoding
    assert len(packed) < len(content) / 10
    assert inflate(packed, encoding, len(content)) == content


def test_encodings_that_are_not_known() -> None:
    assert inflate(b"x", "", 1) == b"x"
    assert inflate(b"x", "identity", 1) == b"x"
    with pytest.raises(InvalidInput, match="Content-Encoding: 'br' is not one of gzip, deflate, identity"):
        inflate(b"x", "br", 1)


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate, gzip", "gzip"),
        ("br;q=1.0, Deflate;q=0.5", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0.0", None),
        ("gzip; q=0.000", None),
        ("GZIP ;Q=0,deflate;q=0", None),
        ("gzip;q=0.001", "gzip"),
        ("identity;q=0, deflate;q=0.5", "deflate"),
        ("xgzip, gzipx", None),
        (",;,=", None),
    ],
)
def test_what_is_accepted(accept: str, name: str | None) -> None:
    assert deflate(b"tandem" * 1000, accept)[1] == name
    assert deflate(b"tandem", accept) == (b"tandem", None)  # not worth it


def test_from_which_size_on_answers_are_compressed() -> None:
    small, large = b"x" * 1199, b"x" * 1200
    assert deflate(small, "gzip") == (small, None)
    packed, name = deflate(large, "gzip")
    assert (name, gzip.decompress(packed)) == ("gzip", large)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(content=st.binary(max_size=64).map(lambda part: part * 100))
def test_what_was_compressed_comes_back(encoding: str, content: bytes) -> None:
    packed, name = deflate(content, encoding)
    assert (name is None) == (len(content) < 1200)
    assert inflate(packed, name or "", len(content)) == content


def test_a_small_body_that_grows_is_stopped_at_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="over the limit of 1000 bytes when decompressed"):
            inflate(bomb, "gzip", 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
