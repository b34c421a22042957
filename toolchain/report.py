"""Everything that was measured while a bundle was made: `report.json` in types."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from toolchain.calibrate import Calibrated, Curve
from toolchain.certify import Certified
from toolchain.runs import Latency
from toolchain.sensitivity import Layer

Verdict = Literal["served", "shipped", "measured", "refused"]


@dataclass(frozen=True)
class FormRow:
    """One precision of a model, measured on the test part.

    `model` is "full" or "edge"; `memory_bytes` the peak of a process that only loads and runs it;
    latencies are of one sample, with one thread and with two; `loss` as `forms` has it; `reason` why it
    was refused.
    """

    model: Literal["full", "edge"]
    name: str
    precision: str
    method: str
    bytes: int
    memory_bytes: int
    one_thread: Latency
    two_threads: Latency
    accuracy: float
    agreement: float
    loss: float
    verdict: Verdict
    reason: str
    in_float: tuple[str, ...]


@dataclass(frozen=True)
class CutRow:
    """One place where the full model can be cut; see `cuts` for the figures.

    `kept` says that it is in the bundle; only then it has a head in `precision`, and an `agreement` of
    `tail(head(x))` with the full model on the test part.
    """

    name: str
    tensors: tuple[str, ...]
    head_share: float
    raw: int
    stored: int
    compressed: int
    head_ms: float
    tail_ms: float
    kept: bool
    precision: str | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class ExitRow:
    """An early exit at a cut: measured on the calibration part at the threshold that keeps the gap there.

    `answered` is the share of samples that the edge would answer; `accuracy` that of the exit alone.
    """

    cut: str
    accuracy: float
    agreement: float
    answered: float
    chosen: bool


@dataclass(frozen=True)
class PairRow:
    """The pair on the test part at the threshold: shares of its samples, and mean bytes of an escalation.

    `gap` is the full model's accuracy minus the pair's; `risk` the share that the edge answered wrongly
    and the full model would not have. `input_bytes` is the size of the tensor, `compressed_bytes` its mean
    behind zstd, `image_bytes` the mean of the encoded images, where there are any.
    """

    samples: int
    threshold: float
    escalated: float
    accuracy: float
    full_accuracy: float
    edge_accuracy: float
    gap: float
    risk: float
    agreement: float
    ece: float
    input_bytes: int
    compressed_bytes: int
    image_bytes: float | None


@dataclass(frozen=True)
class Report:
    """The whole of `report.json`.

    `made` names versions, machine, seed and targets; `data` the sizes of the parts, what was skipped, and
    whether labels or the full model's answers were taken as right; `notes` what was changed in the model.
    """

    model: str
    version: str
    reference: Literal["labels", "full"]
    made: Mapping[str, Any]
    data: Mapping[str, Any]
    notes: tuple[str, ...]
    forms: tuple[FormRow, ...]
    layers: tuple[Layer, ...]
    cuts: tuple[CutRow, ...]
    exits: tuple[ExitRow, ...]
    calibration: Calibrated
    curve: Curve
    certificate: Certified | None
    test: PairRow

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)
