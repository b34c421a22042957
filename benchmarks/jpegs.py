"""JPEG in, label out: the shipped CIFAR-10 bundle as a model that is served, and the photo that is sent."""

import io
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.models import Served
from benchmarks.networks import photos
from inference_core.bundle import load_bundle
from inference_core.engine import Engine
from inference_core.preprocess import decode
from toolchain.images import read_images

BUNDLE = Path(__file__).resolve().parents[1] / "models" / "cifar10"
_DRAWN = 101
_RUNS = 300


def photo(archive: Path | None) -> bytes:
    """A JPEG of 32x32 pixels, of middling size among some: from `archive`, or generated without one."""
    if archive is not None:
        drawn = [image.data for image in read_images(archive, limit=_DRAWN, seed=0)]
    else:
        drawn = [_jpeg(image) for image in photos(_DRAWN, 32, seed=0)]
    return sorted(drawn, key=len)[_DRAWN // 2]


def _jpeg(image: np.ndarray) -> bytes:
    """`image`, float32 `[3, height, width]` of about -2 to 2.5, as a JPEG."""
    out = io.BytesIO()
    pixels = ((image.transpose(1, 2, 0) + 2.1) * 54).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=92)
    return out.getvalue()


def serve(content: bytes) -> tuple[Served, str]:
    """The bundle with the photo's tensor as its sample, and the label that its edge model gives it."""
    bundle = load_bundle(BUNDLE)
    manifest = bundle.manifest
    if manifest.preprocess is None:
        raise RuntimeError(f"{BUNDLE}: has no preprocessing")
    sample = manifest.preprocess.tensor(content)
    engine = Engine(bundle.read(manifest.edge_variant), name=manifest.model)
    logits = engine.run({manifest.input.name: sample})[manifest.output.name]
    served = Served(manifest.model, manifest.edge_variant.precision, BUNDLE, sample, logits)
    return served, manifest.labels[int(logits[0].argmax())]


def decoding_ms(content: bytes) -> float:
    """Milliseconds that the edge's decoder takes for `content`, the median of some runs in this process."""
    rules = load_bundle(BUNDLE).manifest.preprocess
    if rules is None:
        raise RuntimeError(f"{BUNDLE}: has no preprocessing")
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        decode(content, rules.color)
        times.append(time.perf_counter() - started)
    return median(times) * 1000
