"""Packed features are unpacked before a tail; what is no such thing is refused by name."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_service.decoding import Packed
from inference_core.codec import pack
from inference_core.errors import InvalidInput
from inference_core.manifest import TensorInfo

BOUNDARY = (
    TensorInfo(name="features", datatype="UINT8", shape=(4, 2)),
    TensorInfo(name="scale", datatype="FP32", shape=(3,)),
)
FEATURES = np.arange(8, dtype=np.uint8).reshape(1, 4, 2)
SCALE = np.array([[1, -2, 0.5]], np.float32)


def packed(array: NDArray[Any]) -> NDArray[np.object_]:
    return np.array([pack(array.tobytes())], dtype=object)


def test_each_tensor_comes_back() -> None:
    decoder = Packed(BOUNDARY)
    assert [(spec.name, spec.datatype, spec.shape) for spec in decoder.inputs] == [
        ("features", "BYTES", (1,)),
        ("scale", "BYTES", (1,)),
    ]
    found = decoder.decode({"features": packed(FEATURES), "scale": packed(SCALE)})
    assert found["features"].dtype == np.uint8
    np.testing.assert_array_equal(found["features"], FEATURES)
    np.testing.assert_array_equal(found["scale"], SCALE)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"features": packed(FEATURES)}, "takes features, scale packed"),
        ({"features": packed(FEATURES), "scale": SCALE}, "takes features, scale packed"),
        ({"features": packed(FEATURES), "scale": packed(SCALE).repeat(2)}, r"BYTES of shape \[1\]"),
        ({"features": packed(FEATURES), "scale": packed(FEATURES)}, "does not unpack to 12 bytes"),
        ({"features": np.array([b"junk"], object), "scale": packed(SCALE)}, "packed tensor"),
    ],
)
def test_what_is_not_packed_is_refused(inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        Packed(BOUNDARY).decode(inputs)
