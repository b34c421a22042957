"""Samples that are tensors already: the arrays `x` and `y` of an `.npz`, checked before they are believed."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from inference_core.errors import InvalidInput, TooLarge
from inference_core.manifest import TensorInfo
from inference_core.tensors import DATATYPES

MAX_NPZ_BYTES = 8 << 30  # of all its arrays together, uncompressed
_CHUNK = 256  # rows looked at in one go
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Rows = NDArray[np.int64]
Check = Callable[[tuple[int, ...], "np.dtype[Any]"], None]


def read_npz(
    source: Path, takes: TensorInfo, classes: int, draw: Callable[[int], Rows]
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """`x` `[n, ...]` as the model takes it, and `y` `[n]` below `classes`, or None.

    Of the n rows those that `draw(n)` picks. Floats become the model's float type, rounded, and whole
    numbers its whole-number type if that holds them; nothing else is converted. Raises `InvalidInput` naming
    the array, the first wrong row and its value, for what does not fit the model or is no `.npz` of plain
    arrays, and `TooLarge` over `MAX_NPZ_BYTES`; shapes, types and sizes are judged before values are read.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            return _read_pair(archive, takes, classes, draw)
    except InvalidInput as error:
        raise type(error)(f"{source}: {error}") from error
    except Exception as error:  # zipfile and NumPy let through what zlib, struct and the parser raise
        raise InvalidInput(f"{source}: not an .npz, or a damaged one ({error})") from error


def _read_pair(
    archive: zipfile.ZipFile, takes: TensorInfo, classes: int, draw: Callable[[int], Rows]
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    total = sum(entry.file_size for entry in archive.infolist())
    if total > MAX_NPZ_BYTES:
        raise TooLarge(f"{total} bytes of arrays, the limit is {MAX_NPZ_BYTES}")
    held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if "x" not in held:
        raise InvalidInput(f"holds no array 'x', only {', '.join(map(repr, held)) or 'nothing'}")
    # The labels first: they are small, and wrong ones need not wait for the inputs.
    labels = _read_array(archive, "y", _check_labels) if "y" in held else None
    if labels is not None:
        labels = _as_classes(labels, classes)
    inputs = _read_array(archive, "x", lambda shape, dtype: _check_inputs(shape, dtype, takes))
    if labels is not None and len(labels) != len(inputs):
        raise InvalidInput(f"y holds {len(labels)} labels for the {len(inputs)} rows of x")
    rows = draw(len(inputs))
    if len(rows) < len(inputs):
        inputs = inputs[rows]
    return _as_inputs(inputs, takes, rows), None if labels is None else labels[rows]


def _read_array(archive: zipfile.ZipFile, name: str, check: Check) -> NDArray[Any]:
    """The array `name`, once `check` has accepted its shape and dtype."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        shape, dtype = _header(file, name)
        if dtype.hasobject:
            raise InvalidInput(f"{name} holds pickled Python objects, which are never read; store numbers")
        check(shape, dtype)
        # NumPy takes the memory that the header asks for before it reads: so the header must tell the truth.
        if min(shape) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise InvalidInput(
                f"{name} is said to be {list(shape)}, which is not what its {entry.file_size} bytes hold"
            )
    with archive.open(entry) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise InvalidInput(f"{name} is stored in version {version} of the .npy format, not as plain numbers")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype


def _check_inputs(shape: tuple[int, ...], dtype: np.dtype[Any], takes: TensorInfo) -> None:
    if shape[1:] != takes.shape or not shape:
        raise InvalidInput(f"x is {list(shape)}, the model takes {['n', *takes.shape]}".replace("'", ""))
    if shape[0] < 1:
        raise InvalidInput("x holds no rows")
    target = DATATYPES[takes.datatype]
    if dtype.kind == target.kind or {dtype.kind, target.kind} <= {"i", "u"}:
        return
    hint = ""
    if target.kind == "f" and dtype.kind in "iu":
        hint = "; store floats, scaled as the model was trained (pixels often are x / 255)"
    raise InvalidInput(f"x holds {dtype}, the model takes {takes.datatype} ({target}){hint}")


def _check_labels(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu" or len(shape) != 1:
        raise InvalidInput(
            f"y must hold whole numbers [n], the numbers of the classes; it is {dtype} {list(shape)}"
        )


def _as_classes(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    row = _first((labels < 0) | (labels >= classes))
    if row is not None:
        raise InvalidInput(f"y: row {row} is {labels[row]}, the model's classes are 0 to {classes - 1}")
    if len(labels) and (labels == labels[0]).all():
        raise InvalidInput(f"y: all rows are {labels[0]}: one class")
    return labels.astype(np.int64)


def _as_inputs(inputs: NDArray[Any], takes: TensorInfo, rows: Rows) -> NDArray[Any]:
    """`inputs`, whose rows in the file are `rows`, in the model's dtype; a copy only where it must be."""
    target = DATATYPES[takes.datatype]
    if target.kind == "f":
        with np.errstate(over="ignore"):
            inputs = np.ascontiguousarray(inputs, target)
        for at in range(0, len(inputs), _CHUNK):
            some = inputs[at : at + _CHUNK]
            row = _first(~np.isfinite(some).reshape(len(some), -1).all(axis=1))
            if row is not None:
                raise InvalidInput(f"x: row {rows[at + row]} holds a number that is not finite as {target}")
    elif not np.can_cast(inputs.dtype, target):
        least, most = np.iinfo(target).min, np.iinfo(target).max
        for at in range(0, len(inputs), _CHUNK):
            some = inputs[at : at + _CHUNK].reshape(len(inputs[at : at + _CHUNK]), -1)
            row = _first(np.asarray(((some < least) | (some > most)).any(axis=1)))
            if row is not None:
                raise InvalidInput(
                    f"x: row {rows[at + row]} holds a number outside {least} to {most} ({target})"
                )
    return np.ascontiguousarray(inputs, target)


def _first(wrong: NDArray[np.bool_]) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None
