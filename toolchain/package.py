"""Writing a bundle: the folder appears complete, checked and at once, or not at all."""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from inference_core import trust
from inference_core.bundle import MANIFEST, Bundle, load_bundle
from inference_core.engine import Engine
from inference_core.errors import BundleError, InvalidInput, ModelError
from inference_core.manifest import FORMAT, Calibration, Cut, File, Golden, Manifest, TensorInfo, Variant
from inference_core.preprocess import Preprocess
from inference_core.tensors import Tensors
from toolchain.evaluate import CPU, Figures
from toolchain.progress import track

GOLDEN = "golden.npz"
REPORT = "report.json"
GOLDEN_SAMPLES = 4
TOLERANCE = 0.05
FEATURE_STEPS = 2
_SEED = 20240229
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip entry's time, which would otherwise be now


@dataclass(frozen=True)
class OnnxFile:
    """One ONNX file and the precision of its arithmetic or, for `fp16`, of its stored weights."""

    data: bytes
    precision: str


@dataclass(frozen=True)
class CutPieces:
    """The halves of a cut as ONNX files, and what passes between them."""

    head: bytes
    tail: bytes
    boundary: TensorInfo


@dataclass(frozen=True)
class Pieces:
    """All that goes into a bundle. `edge` is the key of the variant that the edge serves.

    `input_range` is the lowest and highest value of an input, for golden inputs that look like real ones.
    `figures` are what was measured of a bundle with these very pieces, if that has happened yet.
    """

    model: str
    version: str
    input: TensorInfo
    output: TensorInfo
    input_range: tuple[float, float]
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    full: OnnxFile
    variants: Mapping[str, OnnxFile]
    edge: str
    cuts: Mapping[str, CutPieces]
    calibration: Calibration
    figures: Figures | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def package(pieces: Pieces, folder: Path, *, replace: bool = False) -> Bundle:
    """Write `pieces` as the bundle `folder`, and load every file of it once.

    The same pieces give the same bytes. Golden inputs are seeded noise, and golden outputs what the
    files answer here. Their tolerance is `TOLERANCE` of the largest logit and `FEATURE_STEPS` steps of
    a feature. Another x86-64 CPU (AVX2 only) was within 1e-6 and 0 of them; that leaves room for other
    architectures and for providers with shorter floats, while an INT8 model that saturates is 0.2 off
    and another network more than 1. Raises `BundleError`, leaving what was there, when `folder` exists
    and is not to be replaced, and when the pieces do not make a valid bundle.
    """
    check_free(folder, replace=replace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        made = Path(beside) / "new"
        made.mkdir()
        try:
            _write(pieces, made)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise BundleError(f"{folder}: {where}: {first['msg']}") from error
        except (InvalidInput, ModelError) as error:
            raise BundleError(f"{folder}: {error}") from error
        _load_all(load_bundle(made))
        _move(made, folder, Path(beside) / "old")
    return load_bundle(folder)


def check_free(folder: Path, *, replace: bool) -> None:
    """Raise `BundleError` when `folder` exists and is not to be replaced."""
    if folder.exists() and not replace:
        raise BundleError(f"{folder}: exists already; say that it is to be replaced, or name another")


def golden_inputs(shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float32]:
    """`GOLDEN_SAMPLES` seeded samples of `shape`, smooth as pictures are, from `low` to `high`."""
    noise = np.random.default_rng(_SEED).random((GOLDEN_SAMPLES, *shape))
    for axis in range(max(1, noise.ndim - 2), noise.ndim):
        noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / 4
    axes = tuple(range(1, noise.ndim))
    least, most = noise.min(axis=axes, keepdims=True), noise.max(axis=axes, keepdims=True)
    spread = (noise - least) / np.maximum(most - least, 1e-9)
    return np.asarray(low + spread * (high - low), np.float32)


def _move(made: Path, folder: Path, old: Path) -> None:
    """Put `made` in the place of `folder`, and what was there into `old`."""
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
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
    report = {**pieces.notes, "figures": pieces.figures.as_json() if pieces.figures else None}
    _write_json(folder / REPORT, report)


def _manifest(pieces: Pieces, files: Mapping[str, File]) -> Manifest:
    figures = pieces.figures
    edges = tuple(
        _variant(name, variant.precision, files[f"edge.{name}.onnx"], figures)
        for name, variant in pieces.variants.items()
    )
    cuts = []
    for name, cut in pieces.cuts.items():
        measured = figures.cuts[name] if figures else None
        cuts.append(
            Cut(
                name=name,
                head=files[f"head.{name}.onnx"],
                tail=files[f"tail.{name}.onnx"],
                boundary=(cut.boundary,),
                agreement=measured.agreement if measured else None,
                head_ms=measured.head_ms if measured else None,
                tail_ms=measured.tail_ms if measured else None,
            )
        )
    golden = files[GOLDEN].model_dump()
    return Manifest(
        format=FORMAT,
        model=pieces.model,
        version=pieces.version,
        task="classification",
        input=pieces.input,
        output=pieces.output,
        preprocess=pieces.preprocess,
        labels=pieces.labels,
        edge=pieces.edge,
        variants=edges,
        full=_variant("full", pieces.full.precision, files["full.onnx"], figures),
        cuts=tuple(cuts),
        calibration=pieces.calibration,
        golden=Golden(**golden, tolerance=TOLERANCE, feature_steps=FEATURE_STEPS),
    )


def _variant(name: str, precision: str, file: File, figures: Figures | None) -> Variant:
    measured = None
    if figures:
        measured = figures.full if name == "full" else figures.variants[name]
    return Variant.model_validate(
        {
            **file.model_dump(),
            "name": name,
            "precision": precision,
            "accuracy": measured.accuracy if measured else None,
            "latency_ms": measured.ms if measured else None,
        }
    )


def _file(name: str, data: bytes) -> File:
    return File(file=name, sha256=trust.sha256(data), bytes=len(data))


def _golden(pieces: Pieces, files: Mapping[str, bytes]) -> bytes:
    """The `.npz` archive: `input` and, for each file, `<file>:<output>`."""
    inputs = golden_inputs(pieces.input.shape, *pieces.input_range)
    arrays: dict[str, NDArray[Any]] = {"input": inputs}
    heads = {f"tail.{name}.onnx": f"head.{name}.onnx" for name in pieces.cuts}
    answers: dict[str, Tensors] = {}
    for name, data in track(files.items(), "golden outputs"):
        fed = answers[heads[name]] if name in heads else {pieces.input.name: inputs}
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
