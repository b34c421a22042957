"""The models that the cloud serves, made from bundles.

A bundle called `m` gives four kinds of models, each with one signature: `m` (the full model on its input
tensor), `m.image` (the same on encoded images, preprocessed here), `m.tail.<cut>` (the rest of the full model
on the features at a cut), and `m.packed.<cut>` (the same on packed features, unpacked here).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from cloud_service.batcher import Batcher
from cloud_service.decoding import IMAGE, Decoder, Images, Packed
from cloud_service.metrics import Metrics
from cloud_service.settings import Settings
from inference_core.bundle import Bundle, File, load_bundle
from inference_core.engine import Engine, TensorSpec
from inference_core.errors import BundleError, ModelNotFound, NotReady, VersionMismatch
from inference_core.statistics import Statistics

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model as callers see it. `decoder` is None for models on tensors; `labels` name its classes."""

    name: str
    version: str
    digest: str
    engine: Engine
    batcher: Batcher
    decoder: Decoder | None = None
    labels: tuple[str, ...] = ()
    statistics: Statistics = field(default_factory=Statistics)

    def answered(
        self, rows: int, total_s: float, queue_s: float, input_s: float, infer_s: float, output_s: float
    ) -> None:
        """Count one answered request in `statistics`; the arguments are those of `Statistics.success`."""
        self.statistics.success(rows, total_s, queue_s, input_s, infer_s, output_s)
        if self.decoder is not None:
            # Its runs are those of the model on tensors, and counted there, whoever shared them. As for an
            # ensemble, one request is one execution.
            self.statistics.executed(rows, infer_s, input_s, output_s)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call must bring."""
        return self.engine.inputs if self.decoder is None else self.decoder.inputs


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
        statistics = Statistics()
        batcher = Batcher(
            engine,
            executor,
            max_batch_size=min(settings.max_batch_size, settings.max_queue),
            window_s=settings.batch_window_ms / 1000,
            max_queue=settings.max_queue,
            clock=clock,
            on_run=metrics.batch_observer(name),
            on_ran=statistics.executed,
            inline_s=settings.inline_ms / 1000,
        )
        batcher.cost.observe(1, slowest)
        metrics.add_model(name, manifest.version, precision, bundle.digest, lambda: batcher.depth)
        _log.info("serving %s from %s/%s, one run %.2f ms", name, folder, file.file, slowest * 1000)
        return Served(
            name, manifest.version, bundle.digest, engine, batcher,
            labels=manifest.labels, statistics=statistics,
        )  # fmt: skip

    full = serve(manifest.model, manifest.full, manifest.full.precision)
    tails = [serve(f"{manifest.model}.tail.{cut.name}", cut.tail, "tail") for cut in manifest.cuts]
    packed = [
        Served(
            f"{manifest.model}.packed.{cut.name}", tail.version, tail.digest, tail.engine, tail.batcher,
            Packed(cut.boundary), tail.labels,
        )
        for cut, tail in zip(manifest.cuts, tails, strict=True)
    ]  # fmt: skip
    return [full, *_image_model(full, bundle, settings), *tails, *packed]


def _image_model(full: Served, bundle: Bundle, settings: Settings) -> list[Served]:
    rules = bundle.manifest.preprocess
    if rules is None:
        return []
    rules.warm_up()
    images = Images(rules, bundle.manifest.input.name, settings.max_pixels, settings.max_batch_size)
    name = f"{full.name}.{IMAGE}"
    return [Served(name, full.version, full.digest, full.engine, full.batcher, images, full.labels)]
