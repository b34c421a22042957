"""The models that the cloud serves, made from bundles.

A bundle called `m` gives four kinds of models, each with one signature: `m` (the full model on its input
tensor), `m.image` (the same on encoded images, preprocessed here), `m.tail.<cut>` (the rest of the full model
on the features at a cut), and `m.packed.<cut>` (the same on packed features, unpacked here).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from cloud_service.batcher import Batcher
from cloud_service.decoding import IMAGE, Decoder, Images, Packed
from cloud_service.metrics import Metrics
from cloud_service.settings import Settings
from inference_core.bundle import Bundle, File, Manifest, load_bundle
from inference_core.concurrency import Limit
from inference_core.engine import Engine, TensorSpec
from inference_core.errors import BundleError, ModelNotFound, NotReady, VersionMismatch
from inference_core.qualification import Qualification
from inference_core.statistics import Statistics
from inference_core.watchdog import Watchdog

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model as callers see it. `decoder` is None for models on tensors; `labels` name its classes.

    `precision` is empty where the runs are those of another model.
    """

    name: str
    version: str
    digest: str
    engine: Engine
    batcher: Batcher
    decoder: Decoder | None = None
    labels: tuple[str, ...] = ()
    statistics: Statistics = field(default_factory=Statistics)
    precision: str = ""

    def limit(self) -> int:
        """Samples that may wait and run now."""
        return self.batcher.admission.limit

    def depth(self) -> int:
        """Samples that wait for a run."""
        return self.batcher.depth

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
        self._served = check_names(served)
        self.ready = True

    async def close(self) -> None:
        """Answer every waiting call; new ones are refused."""
        for served in self.all():
            await served.batcher.close()


def load_models(
    settings: Settings,
    metrics: Metrics,
    executor: Executor,
    clock: Callable[[], float],
    *,
    qualification: Qualification | None = None,
    watchdog: Watchdog | None = None,
    loaded: Sequence[Served] = (),
) -> list[Served]:
    """All models of all bundles in the settings, qualified, warmed up and true to their golden outputs.

    `watchdog` watches their runs. Of those `loaded` already, the ones whose bundle is still the same stay.
    Raises `BundleError`, which names the folder, the file and the rule that it breaks.
    """
    known: dict[str, list[Served]] = {}
    for one in loaded:
        known.setdefault(one.digest, []).append(one)
    bundles = [load_bundle(folder) for folder in settings.bundles]
    if qualification is not None:
        new = [bundle for bundle in bundles if bundle.digest not in known]
        qualification.check([(bundle, _files(bundle.manifest)) for bundle in new])
    served: list[Served] = []
    for bundle in bundles:
        served += known.get(bundle.digest) or _load_bundle(
            bundle, settings, metrics, executor, clock, watchdog
        )
    for one in check_names(served).values():
        if one.precision and one.digest not in known:
            metrics.add_model(one.name, one.version, one.precision, one.digest, one.depth)
            metrics.show_limit(one.name, one.limit)
    return served


def check_names(served: Sequence[Served]) -> dict[str, Served]:
    """These models by name. Raises `BundleError` when two share one."""
    by_name = {item.name: item for item in served}
    if len(by_name) != len(served):
        names = [item.name for item in served]
        raise BundleError(f"two bundles give a model {next(n for n in names if names.count(n) > 1)!r}")
    return by_name


def _files(manifest: Manifest) -> list[File]:
    """What the cloud runs of a bundle."""
    return [manifest.full, *(cut.tail for cut in manifest.cuts)]


def _load_bundle(
    bundle: Bundle,
    settings: Settings,
    metrics: Metrics,
    executor: Executor,
    clock: Callable[[], float],
    watchdog: Watchdog | None,
) -> list[Served]:
    manifest = bundle.manifest

    def serve(name: str, file: File, precision: str) -> Served:
        engine = bundle.engine(file, threads=settings.threads, providers=PROVIDERS, watchdog=watchdog)
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
            limit=_limit(settings),
            on_shed=metrics.declined,
        )
        batcher.cost.observe(1, slowest)
        _log.info("serving %s from %s/%s, one run %.2f ms", name, bundle.folder, file.file, slowest * 1000)
        return Served(
            name, manifest.version, bundle.digest, engine, batcher,
            labels=manifest.labels, statistics=statistics, precision=precision,
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


def _limit(settings: Settings) -> Limit | None:
    """The limit that the settings ask for: it leaves a run and one more enough to do. None for none."""
    if not settings.adaptive_limit:
        return None
    return Limit(2 * settings.max_batch_size, settings.max_queue + 2 * settings.max_batch_size)


def _image_model(full: Served, bundle: Bundle, settings: Settings) -> list[Served]:
    rules = bundle.manifest.preprocess
    if rules is None:
        return []
    rules.warm_up()
    images = Images(rules, bundle.manifest.input.name, settings.max_pixels, settings.max_batch_size)
    name = f"{full.name}.{IMAGE}"
    return [Served(name, full.version, full.digest, full.engine, full.batcher, images, full.labels)]
