"""From two trained networks and labelled images to a bundle: each stage in turn, then measured."""

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from inference_core.bundle import Bundle
from inference_core.engine import Engine, TensorSpec
from inference_core.errors import ModelError
from inference_core.manifest import TensorInfo
from inference_core.preprocess import Preprocess
from toolchain.calibrate import Target, calibrate
from toolchain.evaluate import Figures, evaluate_bundle, run_model
from toolchain.images import LabelledImage, as_examples
from toolchain.package import CutPieces, OnnxFile, Pieces, check_free, package
from toolchain.quantize import half_weights, quantize
from toolchain.split import split

MIN_AGREEMENT = 0.995  # of a cut with the full model, on the test images
_RANGE_SAMPLES = 256  # from which activation ranges are taken


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made from.

    `full` and `edge` are FP32 ONNX files with the same input and output; `cuts` are tensors of `full` by
    the cut's name. `calibration` chooses ranges and the threshold, `test` only measures. With `half`
    all weights that are FP32 are stored as FP16; arithmetic stays FP32.
    """

    model: str
    version: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    full: bytes
    edge: bytes
    cuts: Mapping[str, str]
    calibration: Sequence[LabelledImage]
    test: Sequence[LabelledImage]
    half: bool = False
    target: Target = field(default_factory=Target)


def prepare(recipe: Recipe, folder: Path, *, replace_folder: bool = False) -> tuple[Bundle, Figures]:
    """Quantize, split, calibrate, package and measure `recipe` into the bundle `folder`.

    Returns the bundle, and what was measured of it on the test images. Raises `ModelError` when a model
    cannot be used or a cut agrees with the full model on less than `MIN_AGREEMENT` of the test images,
    `InvalidInput` for images that do not fit, and `BundleError` when `folder` exists and is not to be
    replaced.
    """
    check_free(folder, replace=replace_folder)  # now, and not after minutes of work
    examples = as_examples(recipe.calibration, recipe.preprocess, recipe.labels)
    chosen = np.linspace(0, len(examples) - 1, min(_RANGE_SAMPLES, len(examples))).astype(np.int64)
    samples = examples.inputs[chosen]
    full = _stored(recipe.full, recipe.half)
    edge = quantize(recipe.edge, samples, examples.inputs)
    calibration = calibrate(
        run_model(edge, examples.inputs),
        run_model(full, examples.inputs),
        examples.classes,
        recipe.target,
    )
    plain = "fp16" if recipe.half else "fp32"
    source = Engine(full, name="full")
    pieces = Pieces(
        model=recipe.model,
        version=recipe.version,
        input=_tensor_info(source.inputs[0]),
        output=_tensor_info(source.outputs[0]),
        input_range=(float(samples.min()), float(samples.max())),
        preprocess=recipe.preprocess,
        labels=recipe.labels,
        full=OnnxFile(full, plain),
        variants={"int8": OnnxFile(edge, "int8"), plain: OnnxFile(_stored(recipe.edge, recipe.half), plain)},
        edge="int8",
        cuts=_cut_all(recipe, samples, examples.inputs),
        calibration=calibration,
        notes={"onnxruntime": onnxruntime.__version__, "machine": platform.machine()},
    )
    figures = _measure(pieces, recipe.test)
    return package(replace(pieces, figures=figures), folder, replace=replace_folder), figures


def _cut_all(
    recipe: Recipe, samples: NDArray[np.float32], held_out: NDArray[np.float32]
) -> dict[str, CutPieces]:
    cuts = {}
    for name, tensor in recipe.cuts.items():
        halves = split(recipe.full, tensor, samples, held_out)
        head, tail = _stored(halves.head, recipe.half), _stored(halves.tail, recipe.half)
        cuts[name] = CutPieces(head, tail, halves.boundary)
    return cuts


def _stored(model: bytes, half: bool) -> bytes:
    return half_weights(model) if half else model


def _measure(pieces: Pieces, images: Sequence[LabelledImage]) -> Figures:
    """The figures of a bundle made from `pieces`."""
    with tempfile.TemporaryDirectory() as folder:
        figures = evaluate_bundle(package(pieces, Path(folder) / pieces.model), images)
    for name, cut in figures.cuts.items():
        if cut.agreement < MIN_AGREEMENT:
            raise ModelError(
                f"cut {name!r} agrees with the full model on {cut.agreement:.2%} of the test images, "
                f"the limit is {MIN_AGREEMENT:.2%}"
            )
    return figures


def _tensor_info(spec: TensorSpec) -> TensorInfo:
    return TensorInfo(name=spec.name, datatype=spec.datatype, shape=spec.shape[1:])
