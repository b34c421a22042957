"""What models get right, how long they take, and what a pair of them gains: measured, not estimated."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from inference_core.bundle import Bundle
from inference_core.confidence import score, softmax
from inference_core.engine import Engine
from inference_core.errors import InvalidInput, ModelError
from inference_core.manifest import Calibration, Cut, File
from inference_core.tensors import Tensors
from toolchain.images import Examples, LabelledImage, as_examples
from toolchain.progress import track

Logits = NDArray[np.float32]
Classes = NDArray[np.int64]

CPU = ("CPUExecutionProvider",)
_CHUNK = 100  # samples in one run
_WARM_UP = 2  # turns that are not counted
_ROUNDS = 30
_BURST = 10  # counted calls of each model in a turn
_TIMING_S = 20.0  # no further round is started after this


@dataclass(frozen=True)
class ModelFigures:
    """One ONNX file: accuracy on the images, median milliseconds of one sample, size in bytes."""

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
    """A bundle on `samples` labelled images; every share is of those.

    Milliseconds are medians of one sample on one thread, with all models taking turns, so that their
    ratios hold on a busy machine too. `edge` names the variant that answers in the cascade;
    `image_bytes` is the mean size of an encoded image: what escalating the input sends.
    """

    samples: int
    full: ModelFigures
    variants: Mapping[str, ModelFigures]
    edge: str
    threshold: float
    escalated: float
    cascade_accuracy: float
    image_bytes: float
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


def evaluate_bundle(bundle: Bundle, images: Sequence[LabelledImage]) -> Figures:
    """`bundle`, as its files stand, on labelled `images`.

    Raises `BundleError` for a file that is not as the manifest says, and `InvalidInput` for a bundle that
    takes no images, for no images, and for labels that the bundle does not know.
    """
    manifest = bundle.manifest
    if manifest.preprocess is None:
        raise InvalidInput(f"{manifest.model}: takes tensors, so it cannot be measured on images")
    examples = as_examples(images, manifest.preprocess, manifest.labels)
    runs = _run_all(bundle, examples)
    full, edge = runs[manifest.full.file].logits, runs[manifest.edge_variant.file].logits
    answers, escalated = cascade(edge, full, manifest.calibration)

    def figures(file: File) -> ModelFigures:
        measured = runs[file.file]
        return ModelFigures(accuracy(measured.logits, examples.classes), measured.ms, file.bytes)

    def cut_figures(cut: Cut) -> CutFigures:
        head, tail = runs[cut.head.file], runs[cut.tail.file]
        return CutFigures(agreement(tail.logits, full), cut.bytes, head.ms, tail.ms)

    return Figures(
        samples=len(examples),
        full=figures(manifest.full),
        variants={variant.name: figures(variant) for variant in manifest.variants},
        edge=manifest.edge,
        threshold=manifest.calibration.threshold,
        escalated=float(escalated.mean()),
        cascade_accuracy=float((answers == examples.classes).mean()),
        image_bytes=examples.image_bytes,
        cuts={cut.name: cut_figures(cut) for cut in manifest.cuts},
    )


def run(engine: Engine, inputs: Mapping[str, NDArray[Any]], what: str = "running a model") -> Tensors:
    """All outputs of `engine` for `inputs`, arrays of n rows each, taken a chunk at a time."""
    rows = len(next(iter(inputs.values())))
    chunks = [
        engine.run({name: array[at : at + _CHUNK] for name, array in inputs.items()})
        for at in track(range(0, rows, _CHUNK), what)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def run_model(model: bytes, samples: NDArray[Any]) -> NDArray[Any]:
    """The one output of `model`, the bytes of an ONNX file with one input, for `samples`.

    Raises `ModelError` when there are more inputs or outputs than one.
    """
    engine = Engine(model, name="model")
    if len(engine.inputs) != 1 or len(engine.outputs) != 1:
        raise ModelError(
            f"the model has {len(engine.inputs)} inputs and {len(engine.outputs)} outputs, not 1"
        )
    return run(engine, {engine.inputs[0].name: samples})[engine.outputs[0].name]


def accuracy(logits: Logits, classes: Classes) -> float:
    """The share of rows of `logits` `[n, classes]` whose largest entry is at `classes` `[n]`."""
    return float((logits.argmax(axis=1) == classes).mean())


def agreement(logits: Logits, others: Logits) -> float:
    """The share of rows on which both `[n, classes]` name the same class."""
    return accuracy(logits, others.argmax(axis=1))


def cascade(edge: Logits, full: Logits, rule: Calibration) -> tuple[Classes, NDArray[np.bool_]]:
    """The classes that the pair answers, int64 `[n]`, and which of them were escalated, bool `[n]`.

    The edge's answer stands where its confidence is at least the threshold.
    """
    escalated = score(softmax(edge, rule.temperature), rule.scorer) < rule.threshold
    return np.where(escalated, full.argmax(axis=1), edge.argmax(axis=1)), escalated


def latencies(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median duration of each call in milliseconds.

    They take turns in bursts: so all meet the same load, and each finds its weights in the cache, as in a
    service that runs one model over and over. The first call of a burst only brings them there.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.monotonic() + _TIMING_S
    for turn in track(range(_WARM_UP + _ROUNDS), "timing"):
        for name, call in calls.items():
            call()
            for _ in range(_BURST):
                start = time.perf_counter()
                call()
                if turn >= _WARM_UP:
                    times[name].append(time.perf_counter() - start)
        if turn > 2 * _WARM_UP and time.monotonic() > deadline:
            break
    return {name: round(median(values) * 1000, 4) for name, values in times.items()}


def render(figures: Figures) -> Table:
    """`figures` as a table for a terminal."""
    table = Table(title=f"Measured on {figures.samples} images", title_justify="left")
    for column in ("", "accuracy", "median ms", "bytes"):
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
        f"{figures.image_bytes:,.0f} per image",
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


def _run_all(bundle: Bundle, examples: Examples) -> dict[str, _Run]:
    """Every ONNX file of `bundle`, by its name; tails are fed what their heads answer."""
    manifest = bundle.manifest
    start: Tensors = {manifest.input.name: examples.inputs}
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
            none if name in heads else run(engines[name], feed, name)[manifest.output.name], times[name]
        )
        for name, feed in feeds.items()
    }


def _engine(bundle: Bundle, file: File) -> Engine:
    return bundle.engine(file, threads=1, providers=CPU)


def _once(engine: Engine, inputs: Tensors) -> Callable[[], object]:
    first = {name: array[:1] for name, array in inputs.items()}
    return lambda: engine.run(first)
