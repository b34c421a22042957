"""The handwritten digits that scikit-learn ships, as the images a meter-reading camera would send.

1,797 scans of 8 x 8 gray pixels with values 0 to 16 (UCI, "Optical Recognition of Handwritten
Digits"). Which part a scan belongs to follows from its place in the data set alone.
"""

import io
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference_core.errors import InvalidInput
from toolchain.images import LabelledImage

LABELS = tuple(str(digit) for digit in range(10))
_FULL_INK = 16


class Part(StrEnum):
    """What a scan is used for: half are trained on, a quarter calibrates, a quarter measures."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"


_TURNS = (Part.TRAIN, Part.CALIBRATION, Part.TRAIN, Part.TEST)


def read_scans(part: Part) -> list[LabelledImage]:
    """The scans of `part` as PNGs of 8 x 8 pixels, in the order of the data set.

    Within each digit the scans take turns, so every part holds every digit equally often.
    """
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    images = []
    seen = [0] * len(LABELS)
    for number, (scan, digit) in enumerate(zip(pixels, digits, strict=True)):
        turn = seen[digit] % len(_TURNS)
        seen[digit] += 1
        if _TURNS[turn] is part:
            name = f"{digit}/{number:04d}.png"
            images.append(LabelledImage(name, LABELS[digit], _png(scan.reshape(8, 8))))
    return images


def write_scans(folder: Path, part: Part = Part.TEST) -> int:
    """Write the scans of `part` as `folder/<digit>/<number>.png`; how many they are.

    Raises `InvalidInput` for a folder that is not empty: parts must not mix.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder}: is not empty, and parts must not mix; name another folder")
    images = read_scans(part)
    for image in images:
        path = folder / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.data)
    return len(images)


def _png(scan: NDArray[np.float64]) -> bytes:
    gray = np.round(scan * 255 / _FULL_INK).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, format="PNG")
    return buffer.getvalue()
