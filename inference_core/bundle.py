"""The bundle: the folder that is built, shipped, loaded and swapped as one.

`manifest.json` names everything else in it, with digests. `load_bundle` trusts nothing: every file is
read once, checked against its digest and against the rules of `trust`, and handed on as those bytes.
`docs/bundle-format.md` describes each field for people.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference_core import trust
from inference_core.confidence import Scorer
from inference_core.engine import Engine
from inference_core.errors import BundleError, TandemError
from inference_core.preprocess import Preprocess
from inference_core.tensors import DATATYPES, Tensors

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorInfo(_Record):
    """One tensor without its batch axis: OIP datatype and shape."""

    name: str
    datatype: str
    shape: tuple[Annotated[int, Field(gt=0)], ...]

    @property
    def bytes(self) -> int:
        """The size of one sample in its raw form."""
        return int(np.prod(self.shape, dtype=np.int64)) * DATATYPES[self.datatype].itemsize

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.datatype not in DATATYPES:
            raise ValueError(f"datatype {self.datatype!r} is not one of {', '.join(DATATYPES)}")
        return self


class File(_Record):
    """A file of the bundle, by its plain name."""

    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Variant(File):
    """One ONNX form of a model, with what was measured of it on the maker's machine.

    `accuracy` is top-1 on the test part; `latency_ms` the median of one sample on one thread.
    """

    name: str
    precision: Literal["fp32", "fp16", "int8", "int4", "mixed"]
    accuracy: Fraction | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None


class Cut(_Record):
    """A place where the full model is split: `tail(head(x))` stands for `full(x)`.

    `agreement` is the share of the test part on which both name the same class.
    """

    name: str
    head: File
    tail: File
    boundary: tuple[TensorInfo, ...]
    agreement: Fraction | None = None
    head_ms: float | None = None
    tail_ms: float | None = None

    @property
    def bytes(self) -> int:
        """What one sample sends up at this cut, before compression."""
        return sum(tensor.bytes for tensor in self.boundary)


class CurvePoint(_Record):
    """What the pair did on the calibration part at one threshold."""

    threshold: Fraction
    escalated: Fraction
    accuracy: Fraction


class Certificate(_Record):
    """A bound that holds with `confidence`, for the files named by their digests and no others."""

    bounds: str
    bound: Fraction
    confidence: Fraction
    samples: Annotated[int, Field(gt=0)]
    method: str
    digests: tuple[str, ...]


class Calibration(_Record):
    """How the edge's logits become a confidence, and from where on that is trusted."""

    scorer: Scorer
    temperature: Annotated[float, Field(gt=0)]
    threshold: Fraction
    samples: Annotated[int, Field(gt=0)]
    curve: tuple[CurvePoint, ...] = ()
    certificate: Certificate | None = None


class Golden(File):
    """Inputs and the outputs that every load must reproduce: an `.npz` file.

    Its arrays are `input` and, for each ONNX file, `<file>:<output>`. Outputs of floats may differ by
    `tolerance` times the largest absolute expected value, uint8 features by `feature_steps`.
    """

    tolerance: Annotated[float, Field(gt=0, le=1)]
    feature_steps: Annotated[int, Field(ge=0, le=255)]


class Manifest(_Record):
    """`manifest.json`. Files are named relative to it, without folders."""

    format: int
    model: str
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$")]
    task: Literal["classification"]
    input: TensorInfo
    output: TensorInfo
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    edge: str
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    full: Variant
    cuts: tuple[Cut, ...]
    calibration: Calibration
    golden: Golden

    @property
    def edge_variant(self) -> Variant:
        """The variant that the edge serves."""
        return next(v for v in self.variants if v.name == self.edge)

    def cut(self, name: str) -> Cut | None:
        """The cut called `name`, if there is one."""
        return next((cut for cut in self.cuts if cut.name == name), None)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        for what, names in (
            ("variant", [v.name for v in self.variants]),
            ("cut", [c.name for c in self.cuts]),
        ):
            for name in names:
                _as_value_error(trust.check_name, what, name)
            if len(set(names)) != len(names):
                raise ValueError(f"two {what}s have the same name")
        _as_value_error(trust.check_name, "model", self.model)
        if self.edge not in [v.name for v in self.variants]:
            raise ValueError(f"edge {self.edge!r} is not the name of a variant")
        if self.output.shape != (len(self.labels),):
            raise ValueError(f"{len(self.labels)} labels, but the output has shape {list(self.output.shape)}")
        if self.preprocess and self.preprocess.shape != self.input.shape:
            raise ValueError(
                f"preprocess makes {list(self.preprocess.shape)}, input is {list(self.input.shape)}"
            )
        return self


def _as_value_error(check: Callable[[str, str], str], what: str, name: str) -> None:
    # pydantic turns only ValueError into a message that names the field
    try:
        check(what, name)
    except BundleError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Bundle:
    """A manifest, its digest, and the folder whose files it vouches for."""

    folder: Path
    manifest: Manifest
    digest: str

    def read(self, file: File) -> bytes:
        """The bytes of `file`, whose size and digest are as the manifest says, else `BundleError`."""
        name = trust.check_file_name(file.file)
        path = self.folder / name
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

    def engine(self, file: File, *, threads: int, providers: tuple[str, ...]) -> Engine:
        """`file` as an engine that has reproduced its golden outputs; else `BundleError`."""
        data = self.read(file)
        trust.check_model_file(str(self.folder / file.file), data)
        try:
            engine = Engine(data, name=file.file, threads=threads, providers=providers)
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
        data = self.read(self.manifest.golden)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, EOFError) as error:
            raise BundleError(f"{self.manifest.golden.file}: not an npz archive") from error

    def _golden_inputs(self, file: File) -> Tensors:
        head = next((c.head for c in self.manifest.cuts if c.tail == file), None)
        if head is None:
            return {self.manifest.input.name: self._array("input")}
        return self._expected(head)

    def _expected(self, file: File) -> Tensors:
        prefix = f"{file.file}:"
        return {k[len(prefix) :]: v for k, v in self._golden.items() if k.startswith(prefix)}

    def _array(self, key: str) -> NDArray[Any]:
        if key not in self._golden:
            raise BundleError(f"{self.manifest.golden.file}: holds no {key!r}")
        return self._golden[key]

    def _reproduce(self, file: File, engine: Engine) -> None:
        expected = self._expected(file)
        names = {spec.name for spec in engine.outputs}
        if expected.keys() != names:
            raise BundleError(f"{file.file}: golden outputs {sorted(expected)}, has {sorted(names)}")
        outputs = engine.run(self._golden_inputs(file))
        for name, want in expected.items():
            have = outputs[name]
            if have.shape != want.shape or have.dtype != want.dtype:
                raise BundleError(f"{file.file}: output {name!r} is {have.dtype}{have.shape}")
            if not _close(have, want, self.manifest.golden):
                raise BundleError(f"{file.file}: output {name!r} differs from its golden value")


def _close(have: NDArray[Any], want: NDArray[Any], rule: Golden) -> bool:
    difference = np.abs(have.astype(np.float64) - want.astype(np.float64))
    if want.dtype.kind in "iu":
        return bool(difference.max(initial=0) <= rule.feature_steps)
    limit = rule.tolerance * max(1e-6, float(np.abs(want).max(initial=0)))
    return bool(np.isfinite(have).all() and difference.max(initial=0) <= limit)


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
    except ValueError as error:
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
