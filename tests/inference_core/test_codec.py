"""Packed features come back as they were, never larger than they say, and are worth it."""

import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.codec import pack, unpack
from inference_core.errors import InvalidInput


@given(st.binary(max_size=5000))
def test_what_is_packed_comes_back(data: bytes) -> None:
    assert unpack(pack(data), len(data)) == data


def test_features_get_smaller() -> None:
    values = np.random.default_rng(0).normal(0, 20, 4096).clip(0).astype(np.uint8).tobytes()
    assert len(pack(values)) < 0.75 * len(values)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_garbage_is_refused_and_nothing_else_comes_of_it(data: bytes, size: int) -> None:
    with suppress(InvalidInput):
        assert len(unpack(data, size)) == size


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param(pack(bytes(10)), 9, id="too much"),
        pytest.param(pack(bytes(10)), 11, id="too little"),
        pytest.param(pack(bytes(10))[:-1], 10, id="cut off"),
        pytest.param(pack(bytes(10)) + b"x", 10, id="more behind it"),
        pytest.param(zlib.compress(bytes(10)), 10, id="another form"),
        pytest.param(b"", 0, id="nothing at all"),
    ],
)
def test_what_is_not_the_tensor_is_refused(data: bytes, size: int) -> None:
    with pytest.raises(InvalidInput, match="packed tensor"):
        unpack(data, size)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = pack(bytes(50 << 20))
    with pytest.raises(InvalidInput, match="does not unpack to 1024 bytes"):
        unpack(bomb, 1024)
