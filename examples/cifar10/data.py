"""CIFAR-10 as a folder of JPEGs: reading it, holding out calibration images, downloading it.

Run as a program it downloads the public data set and writes it as ``train/<class>/<number>.jpg`` and
``test/<class>/<number>.jpg``, JPEG quality 75: what a device would send.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

log = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32  # pixels, height and width
CALIBRATION_STRIDE = 10  # every tenth image of a class is held out
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
JPEG_QUALITY = 75
_PROGRESS_S = 2.0  # seconds between progress lines
_RECORD_BYTES = 1 + 3 * SIDE * SIDE  # a label, then a red, a green and a blue plane

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """A set of images, ordered by class and then by file name.

    ``pixels`` is uint8 [n, 32, 32, 3] (RGB), ``labels`` int64 [n] (positions in ``CLASSES``), ``names``
    the n paths below the folder or archive, such as ``cat/00012.jpg``.
    """

    pixels: Pixels
    labels: Labels
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, mask: npt.NDArray[np.bool_]) -> Images:
        """The images where ``mask`` (bool [n]) is true, in the same order."""
        names = tuple(name for name, kept in zip(self.names, mask, strict=True) if kept)
        return Images(self.pixels[mask], self.labels[mask], names)


@dataclass(frozen=True)
class Normalization:
    """``(pixel * scale - mean) / std``, per channel; pixels are 0 to 255."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_normalization() -> Normalization:
    """The numbers in ``preprocess.yaml`` beside this file, which the bundle ships too."""
    text = Path(__file__).with_name("preprocess.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)
    return Normalization(float(entries["scale"]), tuple(entries["mean"]), tuple(entries["std"]))


def read_images(source: Path) -> Images:
    """Reads an ImageFolder (``<class>/<number>.jpg``), or a zip of one, at any depth of folders.

    Raises ``ValueError`` when an image is not 32x32, a folder is no CIFAR-10 class, or nothing is found.
    """
    found: dict[str, Pixels] = {}
    shown = time.monotonic()
    for name, content in _jpegs(source):
        found[name] = _decode(name, content)
        if time.monotonic() - shown > _PROGRESS_S:
            shown = time.monotonic()
            log.info("reading %s: %d images", source, len(found))
    if not found:
        raise ValueError(f"no <class>/<name>.jpg in {source}")
    names = tuple(sorted(found))
    labels = np.array([_label(name, source) for name in names], dtype=np.int64)
    return Images(np.stack([found[name] for name in names]), labels, names)


def calibration_mask(images: Images) -> npt.NDArray[np.bool_]:
    """True for the held-out calibration images: every tenth of each class, by name, from the first."""
    mask = np.zeros(len(images), dtype=bool)
    for label in range(len(CLASSES)):
        members = np.flatnonzero(images.labels == label)
        ordered = sorted(members, key=lambda index: images.names[index])
        mask[ordered[::CALIBRATION_STRIDE]] = True
    return mask


def download(folder: Path) -> None:
    """Downloads the public data set, checks its digest, writes ``train/`` and ``test/`` below ``folder``."""
    archive = folder / "cifar-10-binary.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        _fetch(archive)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != ARCHIVE_SHA256:
        raise ValueError(f"{archive} has sha256 {digest}, not {ARCHIVE_SHA256}: delete it and try again")
    with tarfile.open(archive, "r:gz") as tar:
        for member in sorted(tar.getmembers(), key=lambda entry: entry.name):
            stem = Path(member.name).stem
            content = tar.extractfile(member) if member.name.endswith(".bin") else None
            if content is None:
                continue
            split = "test" if stem == "test_batch" else "train"
            first = 0 if split == "test" else (int(stem.rsplit("_", 1)[1]) - 1) * 10_000
            write_records(content.read(), folder / split, first)
            log.info("%s: written below %s", member.name, folder / split)


def write_records(records: bytes, folder: Path, first: int) -> None:
    """Writes records of the binary version as ``folder/<class>/<number>.jpg``, numbered from ``first``."""
    if len(records) % _RECORD_BYTES:
        raise ValueError(f"{len(records)} bytes are no whole number of {_RECORD_BYTES}-byte records")
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    table = np.frombuffer(records, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    for number, record in enumerate(table, start=first):
        planes = record[1:].reshape(3, SIDE, SIDE)
        image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        image.save(folder / CLASSES[record[0]] / f"{number:05d}.jpg", quality=JPEG_QUALITY)


def _fetch(archive: Path) -> None:
    """Downloads ``URL`` to ``archive``; an interrupted download leaves only a ``.part`` file behind."""
    part = archive.with_suffix(".part")
    shown = time.monotonic()
    with urllib.request.urlopen(URL, timeout=60) as answer, part.open("wb") as file:
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            if file.tell() > ARCHIVE_BYTES:
                raise ValueError(f"{URL} sends more than the expected {ARCHIVE_BYTES} bytes")
            if time.monotonic() - shown > _PROGRESS_S:
                shown = time.monotonic()
                log.info("downloading: %d of %d MB", file.tell() >> 20, ARCHIVE_BYTES >> 20)
    part.replace(archive)


def _jpegs(source: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yields ``<class>/<file>`` and the open file for each JPEG below a folder or inside a zip."""
    if source.is_dir():
        for path in source.rglob("*.jpg"):
            with path.open("rb") as file:
                yield f"{path.parent.name}/{path.name}", file
        return
    with zipfile.ZipFile(source) as archive:
        for entry in archive.namelist():
            if entry.endswith(".jpg"):
                path = Path(entry)
                yield f"{path.parent.name}/{path.name}", io.BytesIO(archive.read(entry))


def _decode(name: str, content: BinaryIO) -> Pixels:
    """One JPEG as uint8 [32, 32, 3], RGB."""
    with Image.open(content) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{name} is {pixels.shape[1]}x{pixels.shape[0]} pixels, not {SIDE}x{SIDE}")
    return pixels


def _label(name: str, source: Path) -> int:
    """The class number of ``<class>/<file>``."""
    folder = name.split("/", 1)[0]
    if folder not in CLASSES:
        raise ValueError(f"{source}: {folder!r} is no CIFAR-10 class")
    return CLASSES.index(folder)


def main() -> None:
    """The command line: ``python -m examples.cifar10.data FOLDER``."""
    parser = argparse.ArgumentParser(description="Download CIFAR-10 (170 MB) and write it as JPEGs.")
    parser.add_argument("folder", type=Path, help="where train/ and test/ are written")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    download(arguments.folder)


if __name__ == "__main__":
    main()
