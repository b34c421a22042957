"""The bundle: the folder that is built, shipped, loaded and swapped as one.

`manifest.json` names everything else in it, with digests. `load_bundle` trusts nothing: every file is
read once, checked against its digest and against the rules of `trust`, and handed on as those bytes.
`docs/bundle-format.md` describes each field for people.
"""

import io
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from inference_core import trust
from inference_core.engine import Engine, TensorSpec
from inference_core.errors import BundleError, TandemError
from inference_core.manifest import (
    FORMAT,
    Calibration,
    Certificate,
    CurvePoint,
    Cut,
    File,
    Golden,
    Manifest,
    TensorInfo,
    Variant,
)
from inference_core.qualify import Trial
from inference_core.tensors import Tensors
from inference_core.watchdog import Watchdog

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Bundle",
    "Calibration",
    "Certificate",
    "CurvePoint",
    "Cut",
    "File",
    "Golden",
    "Manifest",
    "TensorInfo",
    "Variant",
    "load_bundle",
]

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """A manifest, its digest, and the folder whose files it vouches for."""

    folder: Path
    manifest: Manifest
    digest: str

    def read(self, file: File) -> bytes:
        """The bytes of `file`, whose size and digest are as the manifest says, else `BundleError`."""
        path = self.folder / file.file
        try:
            if path.is_symlink():
                raise BundleError(f"{path}: a symbolic link, which a bundle must not hold")
            if path.stat().st_size != file.bytes:
                raise BundleError(f"{path}: {path.stat().st_size} bytes, the manifest says {file.bytes}")
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        trust.check_digest(str(path), data, file.sha256)
        return data

    def trial(self, file: File) -> Trial:
        """`file` as it is run first, in a process of its own: on all its golden inputs."""
        data, path = self.read(file), str(self.folder / file.file)
        trust.check_model_file(path, data)
        return Trial(path, data, self._golden_inputs(file))

    def engine(
        self,
        file: File,
        *,
        threads: int,
        providers: tuple[str, ...],
        watchdog: Watchdog | None = None,
    ) -> Engine:
        """`file` as an engine that has reproduced its golden outputs; else `BundleError`.

        `watchdog` watches its runs; when it needs a new session, it is read again from where it is now.
        """
        data = self.read(file)
        trust.check_model_file(str(self.folder / file.file), data)
        here = replace(self, folder=self.folder.resolve())
        try:
            engine = Engine(
                data,
                name=file.file,
                threads=threads,
                providers=providers,
                model_name=self.manifest.model,
                watchdog=watchdog,
                source=lambda: here.read(file),
            )
            _check_tensors(file, "input", self.manifest.takes(file), engine.inputs)
            _check_tensors(file, "output", self.manifest.gives(file), engine.outputs)
            self._reproduce(file, engine)
        except BundleError:
            raise
        except TandemError as error:
            raise BundleError(f"{self.folder / file.file}: {error}") from error
        return engine

    def sample(self, file: File) -> Tensors:
        """One golden sample as the inputs of `file`: for warming it up."""
        return {name: rows[:1] for name, rows in self._golden_inputs(file).items()}

    @cached_property
    def _golden(self) -> dict[str, NDArray[Any]]:
        data, name = self.read(self.manifest.golden), self.manifest.golden.file
        try:
            with np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {key: np.asarray(archive[key]) for key in archive.files}
        except Exception as error:  # zipfile, zlib and NumPy have a dozen kinds between them
            raise BundleError(f"{name}: not an npz archive of plain arrays") from error
        for key, array in arrays.items():
            # An infinity among the expected values would make the tolerance infinite, too.
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise BundleError(f"{name}: {key!r} does not hold finite numbers")
        return arrays

    def _golden_inputs(self, file: File) -> Tensors:
        head = next((c.head for c in self.manifest.cuts if c.tail == file), None)
        if head is not None:
            return self._expected(head)
        if "input" not in self._golden:
            raise BundleError(f"{self.manifest.golden.file}: holds no 'input'")
        return {self.manifest.input.name: self._golden["input"]}

    def _expected(self, file: File) -> Tensors:
        prefix = f"{file.file}:"
        own = {k[len(prefix) :]: v for k, v in self._golden.items() if k.startswith(prefix)}
        cut = self.manifest.exit_cut(file)
        # The tail was made for what the head gives: an early exit must give the same.
        return own | self._expected(cut.head) if cut else own

    def _reproduce(self, file: File, engine: Engine) -> None:
        expected = self._expected(file)
        names = {spec.name for spec in engine.outputs}
        if expected.keys() != names:
            raise BundleError(f"{file.file}: golden outputs {sorted(expected)}, has {sorted(names)}")
        outputs = engine.run(self._golden_inputs(file))
        for name, want in expected.items():
            have = outputs[name]
            if have.shape != want.shape or have.dtype != want.dtype or not want.size:
                raise BundleError(
                    f"{file.file}: output {name!r} is {have.dtype}{list(have.shape)}, "
                    f"its golden value {want.dtype}{list(want.shape)}"
                )
            if not _close(have, want, self.manifest.golden):
                raise BundleError(f"{file.file}: output {name!r} differs from its golden value")


def _check_tensors(
    file: File, what: str, described: tuple[TensorInfo, ...], found: tuple[TensorSpec, ...]
) -> None:
    """Raise `BundleError` unless the model has these tensors; it may give more, but not take more."""
    specs = {spec.name: spec for spec in found}
    names = {info.name for info in described}
    if not names <= specs.keys() or (what == "input" and names != specs.keys()):
        raise BundleError(f"{file.file}: {what}s {sorted(specs)}, the manifest says {sorted(names)}")
    for info in described:
        spec = specs[info.name]
        fits = len(spec.shape) == len(info.shape) + 1 and all(
            have in (-1, want) for have, want in zip(spec.shape[1:], info.shape, strict=True)
        )
        if spec.datatype != info.datatype or not fits:
            raise BundleError(
                f"{file.file}: {what} {info.name!r} is {spec.datatype}{list(spec.shape)}, the manifest says "
                f"{info.datatype}{list(info.shape)} behind a batch axis"
            )


def _close(have: NDArray[Any], want: NDArray[Any], rule: Golden) -> bool:
    difference = np.abs(have.astype(np.float64) - want.astype(np.float64))
    if want.dtype.kind in "iu":
        return bool(difference.max(initial=0) <= rule.feature_steps)
    limit = rule.tolerance * max(1e-6, float(np.abs(want).max(initial=0)))
    return bool(difference.max(initial=0) <= limit)  # not for a NaN, either


def load_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`, its manifest checked; files are checked as they are read.

    Raises `BundleError`, which names the file and the field, for a folder without a manifest, a format
    that is newer than this program, or a manifest that does not hold together.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: over the limit of {MAX_MANIFEST_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from error
    _check_format(path, content)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}") from error
    return Bundle(folder, manifest, trust.sha256(data))


def _check_format(path: Path, content: Any) -> None:
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path}: format: must be a whole number from 1 to {FORMAT}")
    if version > FORMAT:
        raise BundleError(
            f"{path}: format: {version} is newer than this program understands ({FORMAT}); update it"
        )
