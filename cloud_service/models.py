"""The models that the cloud serves, made from bundles.

A bundle called `m` gives three kinds of models, each with one signature: `m` (the full model on its
input tensor), `m.image` (the same on encoded images, preprocessed here), and `m.tail.<cut>` (the rest of
the full model on the features at a cut).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud_service.batcher import Batcher
from cloud_service.metrics import Metrics
from cloud_service.settings import Settings
from inference_core.bundle import Bundle, File, load_bundle
from inference_core.engine import Engine, TensorSpec
from inference_core.errors import BundleError, InvalidInput, ModelNotFound, NotReady, VersionMismatch
from inference_core.preprocess import Preprocess
from inference_core.tensors import Tensors

IMAGE = "image"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """How a model that takes encoded images makes the tensor `input_name` of them."""

    rules: Preprocess
    input_name: str
    max_pixels: int
    max_images: int

    def decode(self, inputs: Tensors) -> Tensors:
        """The input tensor for `{"image": BYTES[n]}`; `InvalidInput` or `TooLarge` for a bad image."""
        if inputs.keys() != {IMAGE} or inputs[IMAGE].dtype != object or inputs[IMAGE].ndim != 1:
            raise InvalidInput(f"this model takes one input, {IMAGE!r}: BYTES of shape [-1]")
        images = inputs[IMAGE]
        if not 1 <= len(images) <= self.max_images:
            raise InvalidInput(f"{len(images)} images in one request, the limits are 1 and {self.max_images}")
        rows = [self.rules.tensor(image, self.max_pixels) for image in images]
        return {self.input_name: np.concatenate(rows)}


@dataclass(frozen=True)
class Served:
    """One model as callers see it. `images` is None for models on tensors."""

    name: str
    version: str
    digest: str
    engine: Engine
    batcher: Batcher
    images: Images | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call must bring."""
        return self.engine.inputs if self.images is None else (TensorSpec(IMAGE, "BYTES", (-1,)),)


class Models:
    """Every served model by name. Empty, and not ready, until `load` has ended well."""

    def __init__(self) -> None:
        self._served: Mapping[str, Served] = {}
        self.ready = False

    def get(self, name: str, version: str = "", digest: str = "") -> Served:
        """The model called `name`; an empty version or digest stands for whichever is served.

        Raises `NotReady` while loading, `ModelNotFound`, and `VersionMismatch` when the
        version, or the digest of the bundle that the caller works with, is another one than is served here.
        """
        if not self._served:
            raise NotReady("the models are still loading")
        served = self._served.get(name)
        if served is None:
            raise ModelNotFound(f"model {name!r} is not served here, only {', '.join(sorted(self._served))}")
        if version not in ("", served.version):
            raise VersionMismatch(
                f"model {name!r}: version {version} was asked for, {served.version} is here"
            )
        if digest not in ("", served.digest):
            raise VersionMismatch(
                f"model {name!r}: bundle {digest[:12]} was asked for, {served.digest[:12]} is here"
            )
        return served

    def all(self) -> list[Served]:
        """Every served model, by name."""
        return [self._served[name] for name in sorted(self._served)]

    def load(self, served: Sequence[Served]) -> None:
        """Serve exactly these, from now on. Raises `BundleError` when two share a name."""
        by_name = {item.name: item for item in served}
        if len(by_name) != len(served):
            names = [item.name for item in served]
            raise BundleError(f"two bundles give a model {next(n for n in names if names.count(n) > 1)!r}")
        self._served = by_name
        self.ready = True

    async def close(self) -> None:
        """Answer every waiting call; new ones are refused."""
        for served in self.all():
            await served.batcher.close()


def load_models(
    settings: Settings, metrics: Metrics, executor: Executor, clock: Callable[[], float]
) -> list[Served]:
    """All models of all bundles in the settings, warmed up and true to their golden outputs.

    Raises `BundleError`, which names the folder, the file and the rule that it breaks.
    """
    served = []
    for folder in settings.bundles:
        served += _load_bundle(folder, settings, metrics, executor, clock)
    return served


def _load_bundle(
    folder: Path, settings: Settings, metrics: Metrics, executor: Executor, clock: Callable[[], float]
) -> list[Served]:
    bundle = load_bundle(folder)
    manifest = bundle.manifest

    def serve(name: str, file: File, precision: str) -> Served:
        engine = bundle.engine(file, threads=settings.threads, providers=PROVIDERS)
        slowest = engine.warm_up(bundle.sample(file))
        batcher = Batcher(
            engine,
            executor,
            max_batch_size=min(settings.max_batch_size, settings.max_queue),
            window_s=settings.batch_window_ms / 1000,
            max_queue=settings.max_queue,
            clock=clock,
            on_run=metrics.batch_observer(name),
        )
        metrics.add_model(name, manifest.version, precision, bundle.digest, lambda: batcher.depth)
        _log.info("serving %s from %s/%s, one run %.2f ms", name, folder, file.file, slowest * 1000)
        return Served(name, manifest.version, bundle.digest, engine, batcher)

    full = serve(manifest.model, manifest.full, manifest.full.precision)
    tails = [serve(f"{manifest.model}.tail.{cut.name}", cut.tail, "tail") for cut in manifest.cuts]
    return [full, *_image_model(full, bundle, settings), *tails]


def _image_model(full: Served, bundle: Bundle, settings: Settings) -> list[Served]:
    rules = bundle.manifest.preprocess
    if rules is None:
        return []
    rules.warm_up()
    images = Images(rules, bundle.manifest.input.name, settings.max_pixels, settings.max_batch_size)
    name = f"{full.name}.{IMAGE}"
    return [Served(name, full.version, full.digest, full.engine, full.batcher, images)]
