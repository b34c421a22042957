"""Images in folders: an ImageFolder (`<class>/<file>`), or a zip of one, as the bytes a device would send."""

import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from inference_core.errors import InvalidInput, TooLarge
from toolchain.progress import track

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_IMAGE_BYTES = 32 << 20
_SHOWN = 10  # labels in an error


@dataclass(frozen=True)
class LabelledImage:
    """One encoded image. `name` is its path below the source, with `/`; `label` the folder it lies in.

    An image that lies in no folder has no label.
    """

    name: str
    label: str | None
    data: bytes


@dataclass(frozen=True)
class ImageSource:
    """A folder or an open archive. `names` are its images, at any depth, in order and each once."""

    names: tuple[str, ...]
    load: Callable[[str], bytes]

    def read(self, name: str) -> LabelledImage:
        """The image called `name`.

        Raises `InvalidInput`, beginning with the name, for one that cannot be read, as a damaged entry of
        an archive, and `TooLarge` for one over `MAX_IMAGE_BYTES`.
        """
        return LabelledImage(name, label_of(name), self.load(name))


def label_of(name: str) -> str | None:
    """The folder that the image `name` lies in; None at the top."""
    return PurePosixPath(name).parent.name or None


def check_label(name: str, label: str | None, labels: Sequence[str]) -> None:
    """Raise `InvalidInput` unless the image `name` has a `label` that is one of `labels`."""
    if label is None:
        raise InvalidInput(f"{name}: lies in no folder, so it has no label")
    if label not in labels:
        more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
        raise InvalidInput(f"{name}: label {label!r} is not one of {', '.join(labels[:_SHOWN])}{more}")


@contextmanager
def open_images(source: Path) -> Iterator[ImageSource]:
    """The images of the folder or zip archive `source`, to be read one by one.

    Raises `InvalidInput` when `source` is neither, or holds no image.
    """
    if source.is_dir():
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        yield ImageSource(_images(source, files), lambda name: _read_file(source, name))
        return
    if not source.is_file():
        raise InvalidInput(f"{source}: no such folder or zip archive")
    with _open_archive(source) as archive:
        yield ImageSource(_images(source, archive.namelist()), lambda name: _read_entry(archive, name))


def read_images(
    source: Path, limit: int | None = None, seed: int | None = None, labels: Sequence[str] | None = None
) -> list[LabelledImage]:
    """The images in the folder or zip archive `source`, at any depth, ordered by name.

    At most `limit` of them: spread evenly over that order, or drawn and shuffled with `seed`. A seed
    without a limit shuffles all. Raises `InvalidInput` when `source` is neither folder nor archive or
    holds no image, for an image that cannot be read, for a limit below 1, and, where `labels` are given,
    for an image whose folder is not one of them; `TooLarge` for an image over `MAX_IMAGE_BYTES`.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit must be at least 1, got {limit}")
    images = []
    with open_images(source) as found:
        for name in track(_select(found.names, limit, seed), f"reading {source.name}"):
            if labels is not None:
                check_label(f"{source}: {name}", label_of(name), labels)
            try:
                images.append(found.read(name))
            except InvalidInput as error:
                raise type(error)(f"{source}: {error}") from error
    return images


def _open_archive(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InvalidInput(
            f"{source}: not a folder, and not a zip archive or a damaged one ({error})"
        ) from error


def _images(source: Path, names: Sequence[str]) -> tuple[str, ...]:
    found = sorted({name for name in names if _is_image(name)})  # an archive may list a name twice
    if not found:
        raise InvalidInput(f"{source}: holds no image; looked for {', '.join(sorted(SUFFIXES))}")
    return tuple(found)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS puts `__MACOSX/._name.jpg` beside every file of an archive.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _select(names: Sequence[str], limit: int | None, seed: int | None) -> list[str]:
    count = len(names) if limit is None else min(limit, len(names))
    if seed is not None:
        return random.Random(seed).sample(names, count)  # noqa: S311 - a repeatable draw, no secret
    return [names[at * len(names) // count] for at in range(count)]


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        _check_size(name, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{name}: cannot be read ({error.strerror})") from error


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    _check_size(name, archive.getinfo(name).file_size)
    try:
        return archive.read(name)
    except Exception as error:  # zipfile lets through what zlib, bz2, lzma and struct raise
        raise InvalidInput(f"{name}: cannot be read from the archive ({error})") from error


def _check_size(name: str, size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise TooLarge(f"{name}: {size} bytes, the limit is {MAX_IMAGE_BYTES}")
