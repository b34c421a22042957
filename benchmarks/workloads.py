"""What is sent in the benchmark of joint inference: photos as JPEGs, windows of a sensor as tensors."""

import hashlib
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import sensor
from benchmarks.lanes import Route, Sample
from inference_core.bundle import load_bundle
from inference_core.manifest import Manifest

CIFAR10 = Path("models/cifar10")
CACHE = Path(".cache/joint")
MOST_LOSS = (
    0.003  # of accuracy on the calibration part, so that unseen samples lose no more than half a point
)
_WINDOWS = 200
_JPEG, _RAW = "image/jpeg", "application/octet-stream"


@dataclass(frozen=True)
class Workload:
    """A bundle, what is sent to it, by which routes, and how often: `pace_s` by kind of link."""

    name: str
    title: str
    bundle: Path
    samples: list[Sample]
    routes: list[Route]
    deadline_ms: int
    pace_s: float

    def full_right(self) -> list[bool]:
        """Whether the full model is right about each sample."""
        bundle = load_bundle(self.bundle)
        manifest = bundle.manifest
        engine = bundle.engine(manifest.full, threads=0, providers=("CPUExecutionProvider",))
        found = []
        for sample in self.samples:
            if manifest.preprocess is not None:
                tensor = manifest.preprocess.tensor(sample.body, 1 << 20)
            else:
                tensor = np.frombuffer(sample.body, np.float32).reshape(1, *manifest.input.shape)
            logits = engine.run({manifest.input.name: tensor})[manifest.output.name]
            found.append(int(logits.argmax()) == sample.truth)
        return found


def photos(archive: Path) -> Workload:
    """CIFAR-10 test photos, in an order of their own, with the shipped bundle."""
    manifest = load_bundle(CIFAR10).manifest
    with zipfile.ZipFile(archive) as pack:
        names = sorted(name for name in pack.namelist() if name.endswith((".jpg", ".jpeg")))
        order = np.random.default_rng(1).permutation(len(names))
        samples = [
            Sample(pack.read(names[at]), _JPEG, manifest.labels.index(names[at].split("/")[-2]))
            for at in order
        ]
    threshold = lowest_threshold(manifest)
    escalated = _escalated(manifest, threshold)
    by_confidence = {"threshold": threshold}
    routes = [
        Route("edge only", {"mode": "edge"}),
        Route("cloud only, raw", {"mode": "cloud"}, {"PAYLOAD": "tensor"}),
        Route("cloud only, JPEG", {"mode": "cloud"}),
        Route("random", {}, share=escalated),
        Route("cascade", {"mode": "cascade", **by_confidence}),
        *(Route(f"split {cut.name}", {"mode": "split", "cut": cut.name}) for cut in manifest.cuts),
        Route("auto", {"mode": "auto", **by_confidence}, fixed=False),
    ]
    return Workload("photos", "CIFAR-10 photos, JPEG", CIFAR10, samples, routes, 1000, 0.06)


def vibrations() -> Workload:
    """Windows of the sensor; its bundle is made once and kept in `CACHE`."""
    recipe = hashlib.sha256(Path(sensor.__file__).read_bytes()).hexdigest()[:12]
    folder = CACHE / f"vibration-{recipe}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        making = folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        sensor.build(making)
        making.rename(folder)
    manifest = load_bundle(folder).manifest
    made, states = sensor.windows(_WINDOWS, seed=77)
    samples = [Sample(row.tobytes(), _RAW, int(state)) for row, state in zip(made, states, strict=True)]
    threshold = manifest.calibration.threshold
    escalated = _escalated(manifest, threshold)
    routes = [
        Route("edge only", {"mode": "edge"}),
        Route("cloud only, raw", {"mode": "cloud"}),
        Route("random", {}, share=escalated),
        Route("cascade", {"mode": "cascade"}),
        *(Route(f"split {cut.name}", {"mode": "split", "cut": cut.name}) for cut in manifest.cuts),
        Route("auto", {"mode": "auto"}, fixed=False),
    ]
    return Workload("vibrations", "sensor windows of 256 kB, raw", folder, samples, routes, 1000, 0.2)


def lowest_threshold(manifest: Manifest) -> float:
    """The lowest threshold at which the pair lost at most `MOST_LOSS` against the full model when it was
    calibrated. Raises `ValueError` for a bundle without a curve."""
    curve = sorted(manifest.calibration.curve, key=lambda point: point.threshold)
    if not curve:
        raise ValueError(f"model {manifest.model!r}: its bundle has no calibration curve")
    full = curve[-1].accuracy  # everything is escalated there
    keeping = [point for point in curve if point.accuracy >= full - MOST_LOSS]
    return min(point.threshold for point in keeping)


def _escalated(manifest: Manifest, threshold: float) -> float:
    points = [point for point in manifest.calibration.curve if point.threshold >= threshold]
    return min(point.escalated for point in points) if points else 1.0
