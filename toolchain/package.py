"""Writing a bundle: the folder appears complete, checked and at once, or not at all."""

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from inference_core import trust
from inference_core.bundle import MANIFEST, Bundle, load_bundle
from inference_core.engine import Engine
from inference_core.errors import BundleError, InvalidInput, ModelError
from inference_core.manifest import FORMAT, Calibration, Cut, File, Golden, Manifest, TensorInfo, Variant
from inference_core.preprocess import Preprocess
from inference_core.tensors import DATATYPES, Tensors
from toolchain.progress import track
from toolchain.runs import CPU

GOLDEN = "golden.npz"
REPORT = "report.json"
PAGE = "report.html"
GOLDEN_SAMPLES = 4
TOLERANCE = 0.05
FEATURE_STEPS = 2
_SEED = 20240229
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip entry's time, which would otherwise be now


@dataclass(frozen=True)
class OnnxFile:
    """One ONNX file, the precision of its arithmetic or, for `fp16`, of its stored weights, and its figures.

    `cut` names the cut whose features an early exit gives beside the logits.
    """

    data: bytes
    precision: str
    accuracy: float | None = None
    latency_ms: float | None = None
    cut: str | None = None


@dataclass(frozen=True)
class CutPieces:
    """The halves of a cut as ONNX files, what passes between them, and what was measured of them."""

    head: bytes
    tail: bytes
    boundary: tuple[TensorInfo, ...]
    agreement: float | None = None
    head_ms: float | None = None
    tail_ms: float | None = None


@dataclass(frozen=True)
class Pieces:
    """All that goes into a bundle. `edge` is the key of the variant that the edge serves.

    `input_range` is the lowest and highest value of an input, for golden inputs that look like real ones.
    `report` is what `report.json` says, `page` what `report.html` is; without it there is none.
    """

    model: str
    version: str
    input: TensorInfo
    output: TensorInfo
    input_range: tuple[float, float]
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    reference: Literal["labels", "full"]
    full: OnnxFile
    variants: Mapping[str, OnnxFile]
    edge: str
    cuts: Mapping[str, CutPieces]
    calibration: Calibration
    report: Mapping[str, Any]
    page: str = ""


def package(pieces: Pieces, folder: Path, *, replace: bool = False) -> Bundle:
    """Write `pieces` as the bundle `folder`, and load every file of it once.

    The same pieces give the same bytes. Golden inputs are seeded noise, and golden outputs what the
    files answer here. Their tolerance is `TOLERANCE` of the largest logit and `FEATURE_STEPS` steps of
    a feature. Another x86-64 CPU (AVX2 only) was within 1e-6 and 0 of them; that leaves room for other
    architectures and for providers with shorter floats, while an INT8 model that saturates is 0.2 off
    and another network more than 1. Raises what `check_free` does, and `BundleError` when the pieces do
    not make a valid bundle or it cannot be written; what was there is left then.
    """
    check_free(folder, replace=replace)
    folder = folder.resolve()
    with _parents(folder.parent), _beside(folder) as beside:
        made = beside / "new"
        made.mkdir()
        try:
            _write(pieces, made)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise BundleError(f"{folder}: {where}: {first['msg']}") from error
        except (InvalidInput, ModelError) as error:
            raise BundleError(f"{folder}: {error}") from error
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror})") from error
        _load_all(load_bundle(made))
        _move(made, folder, beside / "old")
    return load_bundle(folder)


def check_free(folder: Path, *, replace: bool) -> None:
    """Raise `BundleError` unless the bundle `folder` can be made.

    That is when it exists and is not to be replaced, when it is to be replaced and is no bundle (for
    that is somebody's), and when there is no folder to make it in, or not for this user.
    """
    folder = folder.resolve()
    if folder.exists() and not replace:
        raise BundleError(f"{folder}: exists already; say --replace if it is to be replaced, or name another")
    if folder.exists() and not (folder / MANIFEST).is_file() and not _is_empty(folder):
        raise BundleError(f"{folder}: is no bundle, so it is not replaced; name another")
    above = next(path for path in folder.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise BundleError(f"{folder}: {above} is no folder that this user may write in")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def golden_inputs(info: TensorInfo, low: float, high: float) -> NDArray[Any]:
    """`GOLDEN_SAMPLES` seeded samples of `info`, from `low` to `high`.

    Real numbers are smooth, as pictures and signals are; whole ones are drawn one by one, as ids are.
    """
    dtype = DATATYPES[info.datatype]
    rng = np.random.default_rng(_SEED)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(int(low), int(high) + 1, (GOLDEN_SAMPLES, *info.shape)), dtype)
    noise = rng.random((GOLDEN_SAMPLES, *info.shape))
    for axis in range(max(1, noise.ndim - 2), noise.ndim):
        noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 4
    axes = tuple(range(1, noise.ndim))
    least, most = noise.min(axis=axes, keepdims=True), noise.max(axis=axes, keepdims=True)
    spread = (noise - least) / np.maximum(most - least, 1e-9)
    return np.asarray(low + spread * (high - low), dtype)


def _move(made: Path, folder: Path, old: Path) -> None:
    """Put `made` in the place of `folder`, and what was there into `old`."""
    try:
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
    except BaseException:  # a signal between the two, too
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as `folder`."""
    try:
        temporary = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror})") from error
    with temporary as name:
        yield Path(name)


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """`folder` and those above it are made; those that were not there are removed again on an error."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # someone else put something there
                path.rmdir()
        raise


def _write(pieces: Pieces, folder: Path) -> None:
    files = {"full.onnx": pieces.full.data}
    files |= {f"edge.{name}.onnx": variant.data for name, variant in pieces.variants.items()}
    for name, cut in pieces.cuts.items():
        files |= {f"head.{name}.onnx": cut.head, f"tail.{name}.onnx": cut.tail}
    files[GOLDEN] = _golden(pieces, files)
    for name, data in files.items():
        (folder / trust.check_file_name(name)).write_bytes(data)
    manifest = _manifest(pieces, {name: _file(name, data) for name, data in files.items()})
    _write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    _write_json(folder / REPORT, pieces.report)
    if pieces.page:
        (folder / PAGE).write_text(pieces.page, encoding="utf-8")


def _manifest(pieces: Pieces, files: Mapping[str, File]) -> Manifest:
    cuts = tuple(
        Cut(
            name=name,
            head=files[f"head.{name}.onnx"],
            tail=files[f"tail.{name}.onnx"],
            boundary=cut.boundary,
            agreement=cut.agreement,
            head_ms=cut.head_ms,
            tail_ms=cut.tail_ms,
        )
        for name, cut in pieces.cuts.items()
    )
    return Manifest(
        format=FORMAT,
        model=pieces.model,
        version=pieces.version,
        task="classification",
        input=pieces.input,
        output=pieces.output,
        preprocess=pieces.preprocess,
        labels=pieces.labels,
        reference=pieces.reference,
        edge=pieces.edge,
        variants=tuple(
            _variant(name, variant, files[f"edge.{name}.onnx"]) for name, variant in pieces.variants.items()
        ),
        full=_variant("full", pieces.full, files["full.onnx"]),
        cuts=cuts,
        calibration=pieces.calibration,
        golden=Golden(**files[GOLDEN].model_dump(), tolerance=TOLERANCE, feature_steps=FEATURE_STEPS),
    )


def _variant(name: str, model: OnnxFile, file: File) -> Variant:
    return Variant.model_validate(
        {
            **file.model_dump(),
            "name": name,
            "precision": model.precision,
            "accuracy": model.accuracy,
            "latency_ms": model.latency_ms,
            "cut": model.cut,
        }
    )


def _file(name: str, data: bytes) -> File:
    return File(file=name, sha256=trust.sha256(data), bytes=len(data))


def _golden(pieces: Pieces, files: Mapping[str, bytes]) -> bytes:
    """The `.npz` archive: `input` and, for each file, `<file>:<output>`."""
    inputs = golden_inputs(pieces.input, *pieces.input_range)
    arrays: dict[str, NDArray[Any]] = {"input": inputs}
    heads = {f"tail.{name}.onnx": f"head.{name}.onnx" for name in pieces.cuts}
    answers: dict[str, Tensors] = {}
    for name, data in track(files.items(), "golden outputs"):
        fed: Tensors = answers[heads[name]] if name in heads else {pieces.input.name: inputs}
        answers[name] = Engine(data, name=name, providers=CPU).run(fed)
        arrays |= {f"{name}:{output}": array for output, array in answers[name].items()}
    return _npz(arrays)


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """`arrays` as `np.savez` would store them, but the same bytes whenever it happens."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), entry.getvalue())
    return buffer.getvalue()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _load_all(bundle: Bundle) -> None:
    """Raise `BundleError` unless every ONNX file loads and reproduces its golden outputs."""
    manifest = bundle.manifest
    files: list[File] = [manifest.full, *manifest.variants]
    files += [half for cut in manifest.cuts for half in (cut.head, cut.tail)]
    for file in track(files, "checking the bundle"):
        bundle.engine(file, threads=1, providers=CPU)
