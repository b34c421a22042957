"""What a model is prepared on: images in a folder or a zip, or an `.npz` of tensors, as it takes them."""

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from inference_core.errors import InvalidInput, TooLarge
from inference_core.manifest import TensorInfo
from inference_core.preprocess import FORMATS, Preprocess
from toolchain.arrays import read_npz
from toolchain.images import LabelledImage, check_label, label_of, open_images
from toolchain.progress import track

_NAMED = 3  # bad items that a refusal names

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Classes = NDArray[np.int64]
Rows = NDArray[np.int64]


class Purpose(IntEnum):
    """What a seed is used for: draws for different purposes must not depend on each other."""

    DRAW = 1
    PART = 2


@dataclass(frozen=True)
class Samples:
    """What a model is prepared and measured on.

    `inputs` `[n, ...]` are as the model takes them; `classes` `[n]` positions in the labels, or None
    without labels; `encoded_bytes` the mean size of the encoded images, or None for tensors. `skipped`
    are the items that could not be used, as "name: reason".
    """

    inputs: NDArray[Any]
    classes: Classes | None
    encoded_bytes: float | None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Rows) -> "Samples":
        """A copy of `rows`, in their order. The mean size stays that of all; what was skipped is left out."""
        classes = None if self.classes is None else self.classes[rows]
        return replace(self, inputs=self.inputs[rows], classes=classes, skipped=())


@dataclass(frozen=True)
class Wanted:
    """What the model takes, `input`, and gives: `classes` outputs.

    Without `resize` only images that have the size of `preprocess` can be used.
    """

    input: TensorInfo
    classes: int
    preprocess: Preprocess | None
    resize: bool = True


def read_samples(
    source: Path,
    wanted: Wanted,
    labels: tuple[str, ...] | None,
    *,
    max_bad: int = 0,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Samples, tuple[str, ...]]:
    """The samples in `source`, and the names of the classes in the order of the outputs.

    `source` is a folder or a zip of images, `<class>/<file>` or all at its top without labels, or an `.npz`
    with `x` `[n, ...]` as the model takes it and perhaps `y` `[n]`, the numbers of the classes. Floats
    are rounded to the model's float type, and whole numbers stored as the model's type if it holds them; no
    other types are converted. The names are `labels`, or else the sorted names of the folders, or "0", "1"
    and so on where there are none. At most `limit` samples are drawn with `seed` before any image is
    read. Up to `max_bad` images that cannot be used are skipped, each with a warning.

    Raises `InvalidInput` for anything else, with the name and the value.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"--limit must be at least 1, got {limit}")
    if labels is not None and len(set(labels)) < len(labels):
        raise InvalidInput(f"--labels names {max(labels, key=labels.count)!r} more than once")
    if labels is not None and len(labels) != wanted.classes:
        raise InvalidInput(f"--labels names {len(labels)} classes, the model has {wanted.classes} outputs")
    if not source.exists():
        raise InvalidInput(f"{source}: no such folder, zip archive or .npz file")
    numbers = tuple(str(number) for number in range(wanted.classes))
    if source.suffix.lower() == ".npz" and source.is_file():
        x, y = read_npz(source, wanted.input, wanted.classes, lambda count: _draw(count, limit, seed))
        return Samples(x, y, None), labels or numbers
    with open_images(source) as found:
        folders = _folders(source, found.names)
        if folders:
            labels = labels or _outputs(source, folders, wanted.classes)
            for label, name in {label_of(name): name for name in found.names}.items():
                check_label(f"{source}: {name}", label, labels)
        rows = _draw(len(found.names), limit, seed)
        names = [found.names[row] for row in rows]
        samples = _decode(names, found.read, wanted, labels if folders else None, max_bad, f"{source}: ")
    return samples, labels or numbers


def samples_of(
    images: Sequence[LabelledImage], wanted: Wanted, labels: Sequence[str], *, max_bad: int = 0
) -> Samples:
    """`images` as model inputs, and their labels as positions in `labels`; no classes if none has a label.

    Raises `InvalidInput` for no images, for a label that is missing or not among `labels`, and for more
    than `max_bad` images that cannot be used.
    """
    if not images:
        raise InvalidInput("there are no images to measure on")
    labelled = any(image.label is not None for image in images)
    for image in images:
        if labelled:
            check_label(image.name, image.label, labels)
    return _decode(images, lambda image: image, wanted, labels if labelled else None, max_bad, "")


def generator(purpose: Purpose, seed: int) -> np.random.Generator:
    """Random numbers of `seed` for one purpose. Raises `InvalidInput` for a negative seed."""
    if seed < 0:
        raise InvalidInput(f"--seed must be at least 0, got {seed}")
    return np.random.default_rng([purpose, seed])


def _draw(count: int, limit: int | None, seed: int) -> Rows:
    """The rows to use of `count`, ascending."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(generator(Purpose.DRAW, seed).choice(count, limit, replace=False))


def _folders(source: Path, names: Sequence[str]) -> list[str]:
    """The sorted names of the folders that the images lie in; none for a flat source."""
    folders = {PurePosixPath(name).parent for name in names}
    outer = {above for folder in folders for above in folder.parents}
    for name in names:
        if PurePosixPath(name).parent in outer:
            raise InvalidInput(
                f"{source}: {name} lies beside folders of images; give every image a folder, or none"
            )
    found = sorted({label for name in names if (label := label_of(name)) is not None})
    if len(found) == 1:
        raise InvalidInput(
            f"{source}: all images lie in the folder {found[0]!r}: one class; "
            "a flat folder has its images at its top"
        )
    return found


def _outputs(source: Path, folders: Sequence[str], classes: int) -> tuple[str, ...]:
    if len(folders) != classes:
        raise InvalidInput(
            f"{source}: {len(folders)} folders of images, the model has {classes} outputs; "
            "name the outputs in their order with --labels"
        )
    if all(folder.isdecimal() for folder in folders) and sorted(folders, key=int) != folders:
        _log.warning(
            "%s: the outputs are taken to be %s ..., the folders sorted as text; if their order is "
            "another, name them with --labels",
            source,
            ", ".join(folders[:4]),
        )
    return tuple(folders)


def _decode(
    items: Sequence[Item],
    read: Callable[[Item], LabelledImage],
    wanted: Wanted,
    labels: Sequence[str] | None,
    max_bad: int,
    where: str,
) -> Samples:
    """All `items` as samples but those that cannot be used; refusals begin with `where`."""
    rules = _rules(wanted, where)
    positions = {label: at for at, label in enumerate(labels or ())}
    inputs = _room(len(items), rules, where)
    classes: list[int] = []
    bad: list[str] = []
    wrong_sizes = sizes = used = 0
    for item in track(items, "decoding images"):
        try:
            image = read(item)
            inputs[used] = _tensor(image, wanted, rules)
        except _WrongSize as error:
            wrong_sizes += 1
            bad.append(str(error))
        except InvalidInput as error:
            bad.append(str(error))
        else:
            used += 1
            sizes += len(image.data)
            classes += [positions[str(image.label)]] if labels else []
    if wrong_sizes == len(items):
        raise InvalidInput(bad[0])
    if len(bad) > max_bad or not used:
        first = "; ".join(bad[:_NAMED]) + ("; ..." if len(bad) > _NAMED else "")
        raise InvalidInput(
            f"{where}{len(bad)} of {len(items)} images cannot be used, --max-bad allows {max_bad}: {first}"
        )
    for line in bad:
        _log.warning("skipped %s", line)
    known = np.array(classes, np.int64) if labels else None
    return Samples(inputs[:used], known, sizes / used, tuple(bad))


def _room(count: int, rules: Preprocess, where: str) -> NDArray[np.float32]:
    try:
        return np.empty((count, *rules.shape), np.float32)
    except MemoryError as error:
        size = count * math.prod(rules.shape) * 4 / 1e9
        raise TooLarge(
            f"{where}{count} images are {size:.0f} GB as tensors; take fewer with --limit"
        ) from error


class _WrongSize(InvalidInput):
    """An image that only scaling would bring to the model's size."""


def _rules(wanted: Wanted, where: str) -> Preprocess:
    rules, takes = wanted.preprocess, wanted.input
    if rules is None:
        raise InvalidInput(
            f"{where}images, but the model takes {takes.datatype} {list(takes.shape)} and nothing says how "
            "to make that of an image; give --preprocess FILE, or --resize, --mean and --std, or an .npz"
        )
    if (rules.shape, "FP32") != (takes.shape, takes.datatype):
        raise InvalidInput(
            f"preprocess makes FP32 {list(rules.shape)}, the model takes {takes.datatype} {list(takes.shape)}"
        )
    return rules


def _tensor(image: LabelledImage, wanted: Wanted, rules: Preprocess) -> NDArray[np.float32]:
    """Raises `InvalidInput`, beginning with the name, when `image` cannot be used."""
    try:
        tensor = rules.tensor(image.data)
    except InvalidInput as error:
        raise InvalidInput(f"{image.name}: {error}") from error
    width, height = (rules.width, rules.height) if wanted.resize else _upright_size(image.data)
    if (width, height) != (rules.width, rules.height):
        raise _WrongSize(
            f"{image.name}: {width}x{height}, the model takes {rules.width}x{rules.height}; "
            "give --resize to scale images"
        )
    inputs: NDArray[np.float32] = tensor[0]
    return inputs


def _upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image that can be decoded, as it is looked at."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width == image.height:
        return image.size
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (image.height, image.width) if turned else image.size
