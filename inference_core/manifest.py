"""`manifest.json` as types: what a bundle holds, how it was measured and how it may be used.

Every record is frozen and refuses unknown fields, NaN and infinities. `docs/bundle-format.md` describes
each field for people; `bundle` reads the file.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inference_core import trust
from inference_core.confidence import Scorer
from inference_core.errors import BundleError
from inference_core.preprocess import Preprocess
from inference_core.tensors import DATATYPES

FORMAT = 1

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
        return math.prod(self.shape) * DATATYPES[self.datatype].itemsize

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

    @model_validator(mode="after")
    def _check_file_name(self) -> Self:
        _as_value_error(trust.check_file_name, self.file)
        return self


class Variant(File):
    """One ONNX form of a model, with what was measured of it on the maker's machine.

    `accuracy` is top-1 on the test part; `latency_ms` the median of one sample on one thread. With `cut`
    it is the head of that cut with an early exit: besides the logits it gives the features at the cut.
    """

    name: str
    precision: Literal["fp32", "fp16", "int8", "int4", "mixed"]
    accuracy: Fraction | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    cut: str | None = None


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
    """What the pair did on the calibration part at one threshold.

    `agreement` is with the full model; `risk` the share of all samples that the edge answered, wrongly,
    and the full model would have answered rightly.
    """

    threshold: Fraction
    escalated: Fraction
    accuracy: Fraction
    agreement: Fraction | None = None
    risk: Fraction | None = None


class Certificate(_Record):
    """A bound that holds with `confidence`, for the files named by their digests and at `threshold` only.

    `samples` is the size of the certification part, on which the risk `observed` and the share
    `escalated` were seen. It holds for inputs drawn as those were: drift voids it.
    """

    bounds: str
    bound: Fraction
    confidence: Fraction
    samples: Annotated[int, Field(gt=0)]
    method: str
    digests: tuple[str, ...]
    observed: Fraction | None = None
    escalated: Fraction | None = None
    threshold: Fraction | None = None


class Calibration(_Record):
    """How the edge's logits become a confidence, and from where on that is trusted.

    `ece` is the expected calibration error of the probabilities on the certification part.
    """

    scorer: Scorer
    temperature: Annotated[float, Field(gt=0)]
    threshold: Fraction
    samples: Annotated[int, Field(gt=0)]
    ece: Fraction | None = None
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
    """`manifest.json`. Files are named relative to it, without folders.

    `reference` says what was right when it was measured: the data's labels, or the full model's answers.
    """

    format: int
    model: str
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$")]
    task: Literal["classification"]
    input: TensorInfo
    output: TensorInfo
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    reference: Literal["labels", "full"] = "labels"
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

    @property
    def heads(self) -> dict[str, File]:
        """The heads that the edge runs, by cut: an early exit gives the features of its cut itself."""
        return {cut.name: cut.head for cut in self.cuts if cut.name != self.edge_variant.cut}

    def exit_cut(self, file: File) -> Cut | None:
        """The cut at which the ONNX file `file` exits early, if it does."""
        return self.cut(file.cut) if isinstance(file, Variant) and file.cut is not None else None

    def takes(self, file: File) -> tuple[TensorInfo, ...]:
        """The inputs of the bundle's ONNX file `file`."""
        return next((cut.boundary for cut in self.cuts if cut.tail == file), (self.input,))

    def gives(self, file: File) -> tuple[TensorInfo, ...]:
        """The outputs of the bundle's ONNX file `file`."""
        boundary = next((cut.boundary for cut in self.cuts if cut.head == file), None)
        if boundary is not None:
            return boundary
        cut = self.exit_cut(file)
        return (self.output, *cut.boundary) if cut else (self.output,)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for what, names in (
            ("model", [self.model]),
            ("variant", [v.name for v in self.variants]),
            ("full model", [self.full.name]),
            ("cut", [c.name for c in self.cuts]),
        ):
            for name in names:
                _as_value_error(trust.check_name, what, name)
            if len(set(names)) != len(names):
                raise ValueError(f"two {what}s have the same name")
        if self.edge not in [v.name for v in self.variants]:
            raise ValueError(f"edge {self.edge!r} is not the name of a variant")
        for variant in self.variants:
            if variant.cut is not None and self.cut(variant.cut) is None:
                raise ValueError(f"variant {variant.name!r} exits at {variant.cut!r}, which is not a cut")
        if self.full.cut is not None:
            raise ValueError(f"full model {self.full.name!r} exits at {self.full.cut!r}: only variants may")
        return self

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        certificate = self.calibration.certificate
        if certificate and certificate.threshold not in (None, self.calibration.threshold):
            raise ValueError(
                f"the certificate is for threshold {certificate.threshold}, not {self.calibration.threshold}"
            )
        if self.output.shape != (len(self.labels),):
            raise ValueError(f"{len(self.labels)} labels, but the output has shape {list(self.output.shape)}")
        if self.preprocess and self.preprocess.shape != self.input.shape:
            raise ValueError(
                f"preprocess makes {list(self.preprocess.shape)}, input is {list(self.input.shape)}"
            )
        if self.preprocess and self.input.datatype != "FP32":
            raise ValueError(f"preprocess makes FP32, input is {self.input.datatype}")
        return self


def _as_value_error(check: Callable[..., str], *arguments: str) -> None:
    # pydantic turns only ValueError into a message that names the field
    try:
        check(*arguments)
    except BundleError as error:
        raise ValueError(str(error)) from None
