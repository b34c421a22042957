"""The digit scans: disjoint parts, exact pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from toolchain.images import read_images
from toolchain.scans import LABELS, Part, read_scans, write_scans


def test_the_parts_are_disjoint_and_together_all_scans() -> None:
    names = [image.name for part in Part for image in read_scans(part)]
    assert len(names) == len(set(names)) == 1797
    assert [len(read_scans(part)) for part in Part] == [901, 451, 445]


def test_a_scan_is_an_8x8_png_of_its_pixels() -> None:
    pixels, digits = load_digits(return_X_y=True)
    for image in read_scans(Part.TEST)[:20]:
        number = int(image.name.split("/")[1].removesuffix(".png"))
        stored = np.asarray(Image.open(io.BytesIO(image.data)))
        assert stored.shape == (8, 8)
        assert np.array_equal(np.round(stored * (16 / 255)), pixels[number].reshape(8, 8))
        assert image.label == LABELS[digits[number]]


def test_written_scans_read_back_as_they_were(tmp_path: Path) -> None:
    assert write_scans(tmp_path / "scans") == 445
    written = {image.name: image for image in read_images(tmp_path / "scans", labels=LABELS)}
    assert written == {image.name: image for image in read_scans(Part.TEST)}
