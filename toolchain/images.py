"""Labelled images: an ImageFolder (`<class>/<file>`), or a zip of one, as the bytes a device would send."""

import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput, TooLarge
from inference_core.preprocess import Preprocess
from toolchain.progress import track

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_IMAGE_BYTES = 32 << 20


@dataclass(frozen=True)
class LabelledImage:
    """One encoded image. `name` is its path below the source, with `/`; `label` the folder it lies in.

    An image that lies in no folder has no label.
    """

    name: str
    label: str | None
    data: bytes


@dataclass(frozen=True)
class Examples:
    """What a model is measured on: `inputs` float32 `[n, ...]`, and `classes` int64 `[n]`.

    `image_bytes` is the mean size of the encoded images they come from.
    """

    inputs: NDArray[np.float32]
    classes: NDArray[np.int64]
    image_bytes: float

    def __len__(self) -> int:
        return len(self.classes)


def read_images(
    source: Path, limit: int | None = None, seed: int | None = None, labels: Sequence[str] | None = None
) -> list[LabelledImage]:
    """The images in the folder or zip archive `source`, at any depth, ordered by name.

    At most `limit` of them: spread evenly over that order, or drawn and shuffled with `seed`. A seed
    without a limit shuffles all. Raises `InvalidInput` when `source` is neither folder nor archive or
    holds no image, for a limit below 1, and, where `labels` are given, for an image whose folder is not
    one of them; `TooLarge` for an image over `MAX_IMAGE_BYTES`.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit must be at least 1, got {limit}")
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        return _read(source, names, lambda name: _read_file(source / name), limit, seed, labels)
    if not source.is_file():
        raise InvalidInput(f"{source}: no such folder or zip archive")
    try:
        with zipfile.ZipFile(source) as archive:
            return _read(
                source, archive.namelist(), lambda name: _read_entry(archive, name), limit, seed, labels
            )
    except zipfile.BadZipFile as error:
        raise InvalidInput(f"{source}: not a folder, and not a zip archive ({error})") from error


def as_examples(images: Sequence[LabelledImage], preprocess: Preprocess, labels: Sequence[str]) -> Examples:
    """`images` as model inputs, and their labels as positions in `labels`.

    Raises `InvalidInput` for no images, a label that is missing or not among `labels`, and, naming the
    file, for an image that cannot be decoded.
    """
    if not images:
        raise InvalidInput("there are no images to measure on")
    positions = {label: at for at, label in enumerate(labels)}
    inputs = np.empty((len(images), *preprocess.shape), np.float32)
    classes = np.empty(len(images), np.int64)
    for at, image in enumerate(track(images, "decoding images")):
        _check_label(image.name, image.label, labels)
        try:
            inputs[at] = preprocess.tensor(image.data)[0]
        except InvalidInput as error:
            raise type(error)(f"{image.name}: {error}") from error
        classes[at] = positions[str(image.label)]
    return Examples(inputs, classes, sum(len(image.data) for image in images) / len(images))


def _read(
    source: Path,
    names: list[str],
    read: Callable[[str], bytes],
    limit: int | None,
    seed: int | None,
    labels: Sequence[str] | None,
) -> list[LabelledImage]:
    wanted = sorted(name for name in names if _is_image(name))
    if not wanted:
        raise InvalidInput(f"{source}: holds no image; looked for {', '.join(sorted(SUFFIXES))}")
    images = []
    for name in track(_select(wanted, limit, seed), f"reading {source.name}"):
        label = PurePosixPath(name).parent.name or None
        if labels is not None:
            _check_label(f"{source}: {name}", label, labels)
        images.append(LabelledImage(name, label, read(name)))
    return images


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS puts `__MACOSX/._name.jpg` beside every file of an archive.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _select(names: list[str], limit: int | None, seed: int | None) -> list[str]:
    count = len(names) if limit is None else min(limit, len(names))
    if seed is not None:
        return random.Random(seed).sample(names, count)  # noqa: S311 - a repeatable draw, no secret
    return [names[at * len(names) // count] for at in range(count)]


def _check_label(name: str, label: str | None, labels: Sequence[str]) -> None:
    if label is None:
        raise InvalidInput(f"{name}: lies in no folder, so it has no label")
    if label not in labels:
        raise InvalidInput(f"{name}: label {label!r} is not one of {', '.join(labels)}")


def _read_file(path: Path) -> bytes:
    _check_size(str(path), path.stat().st_size)
    return path.read_bytes()


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    _check_size(name, archive.getinfo(name).file_size)
    return archive.read(name)


def _check_size(name: str, size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise TooLarge(f"{name}: {size} bytes, the limit is {MAX_IMAGE_BYTES}")
