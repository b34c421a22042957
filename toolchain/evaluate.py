"""What a bundle gets right, how long it takes, and what its pair gains: measured, not estimated."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from inference_core.bundle import Bundle
from inference_core.confidence import score, softmax
from inference_core.engine import Engine
from inference_core.errors import InvalidInput
from inference_core.manifest import Calibration, Cut, File
from inference_core.tensors import Tensors
from toolchain.runs import CPU, Classes, Logits, accuracy, agreement, latencies, run
from toolchain.samples import Samples


@dataclass(frozen=True)
class ModelFigures:
    """One ONNX file: accuracy on the samples, median milliseconds of one sample, size in bytes."""

    accuracy: float
    ms: float
    bytes: int


@dataclass(frozen=True)
class CutFigures:
    """One cut: agreement with the full model, bytes of one sample's features, milliseconds of its halves."""

    agreement: float
    bytes: int
    head_ms: float
    tail_ms: float


@dataclass(frozen=True)
class Figures:
    """A bundle on so many `samples`; every share is of those.

    `reference` says what was right: the labels, or the full model's answers. Milliseconds are medians of
    one sample on one thread, with all models taking turns, so that their ratios hold on a busy machine
    too. `edge` names the variant that answers in the cascade; `input_bytes` is what escalating the input
    sends: the mean size of an encoded image, or the size of the tensor.
    """

    samples: int
    reference: Literal["labels", "full"]
    full: ModelFigures
    variants: Mapping[str, ModelFigures]
    edge: str
    threshold: float
    escalated: float
    cascade_accuracy: float
    input_bytes: float
    cuts: Mapping[str, CutFigures]

    @property
    def edge_figures(self) -> ModelFigures:
        """Those of the variant that the edge serves."""
        return self.variants[self.edge]

    @property
    def speedup(self) -> float:
        """How many times faster the edge model is than the full one."""
        return self.full.ms / self.edge_figures.ms

    def as_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {**asdict(self), "speedup": self.speedup}


def evaluate_bundle(bundle: Bundle, samples: Samples) -> Figures:
    """`bundle`, as its files stand, on `samples`; without labels, the full model's answers are right.

    Raises `BundleError` for a file that is not as the manifest says, and `InvalidInput` for no samples.
    """
    if not len(samples):
        raise InvalidInput("there is nothing to measure on")
    manifest = bundle.manifest
    runs = _run_all(bundle, samples.inputs)
    full, edge = runs[manifest.full.file].logits, runs[manifest.edge_variant.file].logits
    classes = full.argmax(axis=1) if samples.classes is None else samples.classes
    answers, escalated = cascade(edge, full, manifest.calibration)

    def figures(file: File) -> ModelFigures:
        measured = runs[file.file]
        return ModelFigures(accuracy(measured.logits, classes), measured.ms, file.bytes)

    def cut_figures(cut: Cut) -> CutFigures:
        head, tail = runs[cut.head.file], runs[cut.tail.file]
        return CutFigures(agreement(tail.logits, full), cut.bytes, head.ms, tail.ms)

    return Figures(
        samples=len(samples),
        reference="full" if samples.classes is None else "labels",
        full=figures(manifest.full),
        variants={variant.name: figures(variant) for variant in manifest.variants},
        edge=manifest.edge,
        threshold=manifest.calibration.threshold,
        escalated=float(escalated.mean()),
        cascade_accuracy=float((answers == classes).mean()),
        input_bytes=samples.encoded_bytes or manifest.input.bytes,
        cuts={cut.name: cut_figures(cut) for cut in manifest.cuts},
    )


def cascade(edge: Logits, full: Logits, rule: Calibration) -> tuple[Classes, NDArray[np.bool_]]:
    """The classes that the pair answers, int64 `[n]`, and which of them were escalated, bool `[n]`.

    The edge's answer stands where its confidence is at least the threshold.
    """
    escalated = score(softmax(edge, rule.temperature), rule.scorer) < rule.threshold
    return np.where(escalated, full.argmax(axis=1), edge.argmax(axis=1)), escalated


def render(figures: Figures) -> Table:
    """`figures` as a table for a terminal."""
    labelled = figures.reference == "labels"
    title = f"Measured on {figures.samples} samples" + ("" if labelled else ", against the full model")
    table = Table(title=title, title_justify="left")
    for column in ("", "accuracy" if labelled else "agreement", "median ms", "bytes"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("full model", *_row(figures.full))
    for name, variant in figures.variants.items():
        mark = ", served" if name == figures.edge else ""
        table.add_row(f"edge {name}{mark}", *_row(variant))
    table.add_section()
    table.add_row(
        f"cascade, threshold {figures.threshold:.3f}",
        f"{figures.cascade_accuracy:.2%}",
        f"{figures.escalated:.1%} escalated",
        f"{figures.input_bytes:,.0f} an input",
    )
    for name, cut in figures.cuts.items():
        table.add_row(
            f"cut {name}",
            f"agrees {cut.agreement:.2%}",
            f"{cut.head_ms:.3f} + {cut.tail_ms:.3f}",
            f"{cut.bytes:,} of features",
        )
    table.caption = f"the edge model is {figures.speedup:.1f} times faster than the full one, on one thread"
    return table


def _row(figures: ModelFigures) -> tuple[str, str, str]:
    return f"{figures.accuracy:.2%}", f"{figures.ms:.3f}", f"{figures.bytes:,}"


@dataclass(frozen=True)
class _Run:
    """What one file answered on the images, and its median milliseconds for one; a head has no logits."""

    logits: Logits
    ms: float


def _run_all(bundle: Bundle, inputs: NDArray[Any]) -> dict[str, _Run]:
    """Every ONNX file of `bundle`, by its name; tails are fed what their heads answer."""
    manifest = bundle.manifest
    start: Tensors = {manifest.input.name: inputs}
    feeds = {file.file: start for file in (manifest.full, *manifest.variants)}
    engines = {file.file: _engine(bundle, file) for file in (manifest.full, *manifest.variants)}
    for cut in manifest.cuts:
        for half in (cut.head, cut.tail):
            engines[half.file] = _engine(bundle, half)
        feeds[cut.head.file] = start
        feeds[cut.tail.file] = run(engines[cut.head.file], start, cut.head.file)
    calls = {name: _once(engines[name], feed) for name, feed in feeds.items()}
    times = latencies(calls)
    heads = {cut.head.file for cut in manifest.cuts}
    none = np.empty((0, len(manifest.labels)), np.float32)
    return {
        name: _Run(
            none if name in heads else run(engines[name], feed, name)[manifest.output.name], times[name].p50
        )
        for name, feed in feeds.items()
    }


def _engine(bundle: Bundle, file: File) -> Engine:
    return bundle.engine(file, threads=1, providers=CPU)


def _once(engine: Engine, inputs: Tensors) -> Callable[[], object]:
    first = {name: array[:1] for name, array in inputs.items()}
    return lambda: engine.run(first)
