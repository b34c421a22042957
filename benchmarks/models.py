"""What is served in the benchmark: two networks with seeded weights, as FP32 and INT8, each in a bundle."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod

from benchmarks import networks
from benchmarks.networks import INPUT, Graph, inverted, photos, tiny
from inference_core.bundle import load_bundle
from inference_core.confidence import Scorer
from inference_core.engine import Engine
from inference_core.manifest import Calibration
from toolchain.graph import check
from toolchain.package import OnnxFile, Pieces, package
from toolchain.quantize import Quantizer

Floats = NDArray[np.float32]

PRECISIONS = ("fp32", "int8")
_CALIBRATION = 16  # samples that the ranges of INT8 are taken from
_WIDTH = 0.6  # of MobileNetV2: about the time that the published aims were set with
_BLOCKS = (  # factor, channels, depth, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclass(frozen=True)
class Served:
    """One model as one bundle, with a sample and what it answers.

    `sample` is float32 `[1, *shape]`, `logits` float32 `[1, classes]`, both C-contiguous.
    """

    name: str
    precision: str
    bundle: Path
    sample: Floats = field(repr=False)
    logits: Floats = field(repr=False)

    @cached_property
    def file(self) -> Path:
        """The ONNX file that the edge serves, and the raw loop and the peers with it."""
        manifest = load_bundle(self.bundle).manifest
        return self.bundle / manifest.edge_variant.file

    @property
    def label(self) -> str:
        """The name of the class that the model answers."""
        return str(int(self.logits[0].argmax()))


def mid(size: int = 224, classes: int = 1000) -> bytes:
    """MobileNetV2 (Sandler et al., 2018), its layers narrower: `[batch, 3, size, size]` to `classes`."""
    graph = Graph(3, size, size)

    def channels(published: int) -> int:
        return max(8, round(published * _WIDTH / 8) * 8)

    x = graph.relu6(graph.norm(graph.conv(graph.input, channels(32), stride=2)))
    for factor, published, depth, stride in _BLOCKS:
        for number in range(depth):
            x = inverted(graph, x, channels(published), factor, 1 if number else stride)
    return graph.classify(graph.relu6(graph.norm(graph.conv(x, 1280, 1))), classes)


BUILDERS: dict[str, tuple[Callable[[], bytes], int]] = {"tiny": (tiny, 28), "mid": (mid, 224)}


def build(name: str, folder: Path) -> dict[str, Served]:
    """The model `name` of `BUILDERS` by precision, each as a bundle below `folder`.

    What an earlier run left there is served again when this code made it.
    """
    builder, size = BUILDERS[name]
    stamp = hashlib.sha256(Path(__file__).read_bytes() + Path(networks.__file__).read_bytes()).hexdigest()
    return {
        precision: _serve(name, precision, builder, size, folder / stamp[:16]) for precision in PRECISIONS
    }


def _serve(name: str, precision: str, builder: Callable[[], bytes], size: int, folder: Path) -> Served:
    model = name if precision == "fp32" else f"{name}-{precision}"
    bundle = folder / model
    if not bundle.exists():
        pack(model, precision, builder(), bundle)
    manifest = load_bundle(bundle).manifest
    sample = samples(1, manifest.input.shape[0], size, seed=5)
    engine = Engine((bundle / manifest.edge_variant.file).read_bytes(), name=model)
    return Served(model, precision, bundle, sample, engine.run({INPUT: sample})[manifest.output.name])


def samples(count: int, channels: int, size: int, seed: int) -> Floats:
    """Seeded pictures of a net's size: float32 `[count, channels, size, size]`, C-contiguous."""
    return np.ascontiguousarray(photos(count, size, seed)[:, :channels])


def pack(model: str, precision: str, data: bytes, folder: Path) -> None:
    """Write the network `data` as the bundle `folder`, its edge model in `precision`.

    For `int8` its input must be pictures, `[batch, channels, size, size]`.
    """
    graph = check(data, model)
    edge = graph.data
    if precision == "int8":
        channels, size, _ = graph.input.shape
        with Quantizer(graph.data, samples(_CALIBRATION, channels, size, seed=1)) as quantizer:
            edge = quantizer.quantize(CalibrationMethod.MinMax)
    pieces = Pieces(
        model=model,
        version="1",
        input=graph.input,
        output=graph.output,
        input_range=(-2.0, 2.5),
        preprocess=None,
        labels=tuple(str(number) for number in range(graph.output.shape[0])),
        reference="full",
        full=OnnxFile(graph.data, "fp32"),
        variants={precision: OnnxFile(edge, precision)},
        edge=precision,
        cuts={},
        calibration=Calibration(scorer=Scorer.MAX_PROBABILITY, temperature=1.0, threshold=0.5, samples=1),
        report={"what": "a network with random weights, for timing"},
    )
    package(pieces, folder)
