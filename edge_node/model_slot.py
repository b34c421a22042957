"""The loaded model of each name. A request takes it once and keeps it to the end."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_node.outcome import ModelRef
from edge_node.policy import Mode, check_mode
from edge_node.preferences import ModelPreferences
from edge_node.settings import Settings
from edge_node.waiting import Timed
from inference_core.batch_cost import BatchCost
from inference_core.bundle import Bundle, File, Manifest, load_bundle
from inference_core.confidence import Row, judge
from inference_core.engine import TensorSpec
from inference_core.errors import BundleError, InvalidInput, ModelError, ModelNotFound, NotReady
from inference_core.qualification import Qualification
from inference_core.statistics import Statistics
from inference_core.tensors import Tensors
from inference_core.watchdog import Watchdog

PROVIDERS = ("CPUExecutionProvider",)
_MARGIN_S = 0.005
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EdgeRun:
    """What the edge model says of one sample.

    `logits`, float32 `[1, classes]`; their calibrated `probabilities`, shape `[classes]`, and the
    `confidence` that is held against a threshold; the `features` at its cut if it is an early exit.
    """

    logits: NDArray[np.float32]
    probabilities: Row
    confidence: float
    features: Tensors


def features_of(seen: EdgeRun | None) -> Tensors:
    """The features that an early exit has left behind; `RuntimeError` where it has not run."""
    if seen is None:
        raise RuntimeError("no head at this cut, and the edge model has not run")
    return seen.features


@dataclass(frozen=True)
class LoadedModel:
    """A bundle as the edge serves it: the edge model, the heads by cut, and how they are used.

    The cut at which the edge model exits early has no head here. `reserve_s` is what an answer by the edge
    model alone may take: twice its slowest warm-up run, and a margin. `defaults` are the settings of this
    model, `statistics` what it has served.
    """

    manifest: Manifest
    digest: str
    edge: Timed
    heads: Mapping[str, Timed]
    reserve_s: float
    defaults: ModelPreferences
    statistics: Statistics

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.manifest.model

    @property
    def input(self) -> TensorSpec:
        """What the model takes, with a free batch axis."""
        tensor = self.manifest.input
        return TensorSpec(tensor.name, tensor.datatype, (-1, *tensor.shape))

    @cached_property
    def cuts(self) -> tuple[str, ...]:
        """The names of the cuts."""
        return tuple(cut.name for cut in self.manifest.cuts)

    @cached_property
    def reference(self) -> ModelRef:
        """How outcomes name this model."""
        return ModelRef(self.name, self.manifest.version, self.digest)

    @cached_property
    def exits_at(self) -> str | None:
        """The cut at which the edge model exits early, if it does."""
        return self.manifest.edge_variant.cut

    @cached_property
    def _gives(self) -> tuple[str, tuple[str, ...]]:
        """The edge model's output of logits, and those of features."""
        logits, *features = self.manifest.gives(self.manifest.edge_variant)
        return logits.name, tuple(info.name for info in features)

    def check(self, inputs: Tensors) -> None:
        """Raise `InvalidInput` unless the edge model takes these."""
        self.edge.engine.check(inputs)

    def read(self, outputs: Tensors) -> EdgeRun:
        """What the edge model's outputs for one sample say. Raises `InvalidInput` for a NaN among them."""
        logits, features = self._gives
        calibration = self.manifest.calibration
        probabilities, confidence = judge(outputs[logits][0], calibration.temperature, calibration.scorer)
        return EdgeRun(outputs[logits], probabilities, confidence, {name: outputs[name] for name in features})


class ModelSlots:
    """Every served model by name. Empty, and not ready, until `load` has ended well."""

    def __init__(self) -> None:
        self._loaded: Mapping[str, LoadedModel] = {}
        self.ready = False

    def get(self, name: str, version: str = "") -> LoadedModel:
        """The model called `name`; an empty version stands for whichever is served.

        Raises `NotReady` while loading and `ModelNotFound`.
        """
        if not self._loaded:
            raise NotReady("the models are still loading")
        model = self._loaded.get(name)
        if model is None:
            raise ModelNotFound(f"model: {name!r} is not served here, only {', '.join(sorted(self._loaded))}")
        if version not in ("", model.manifest.version):
            raise ModelNotFound(
                f"version: {version!r} of model {name!r} is not served here, only {model.manifest.version!r}"
            )
        return model

    def all(self) -> list[LoadedModel]:
        """Every served model, by name."""
        return [self._loaded[name] for name in sorted(self._loaded)]

    def load(self, models: list[LoadedModel]) -> None:
        """Serve exactly these, from now on. Raises `BundleError` when two share a name."""
        by_name = {model.name: model for model in models}
        if len(by_name) != len(models):
            names = [model.name for model in models]
            raise BundleError(f"two bundles are of model {next(n for n in names if names.count(n) > 1)!r}")
        self._loaded = by_name
        self.ready = True


def load_models(
    settings: Settings,
    *,
    qualification: Qualification | None = None,
    watchdog: Watchdog | None = None,
    loaded: Sequence[LoadedModel] = (),
) -> list[LoadedModel]:
    """All bundles in the settings, qualified, warmed up and true to their golden outputs.

    `watchdog` watches their runs. Of those `loaded` already, the ones whose bundle is still the same stay.
    Raises `BundleError`, which names the folder, the file and the rule that it breaks, and also when the
    settings ask of a model what its bundle does not have.
    """
    known = {model.digest: model for model in loaded}
    bundles = [load_bundle(Path(folder)) for folder in settings.bundles]
    if qualification is not None:
        new = [bundle for bundle in bundles if bundle.digest not in known]
        qualification.check([(bundle, _files(bundle.manifest)) for bundle in new])
    models = [known.get(bundle.digest) or _load(bundle, settings, watchdog) for bundle in bundles]
    unknown = settings.models.keys() - {model.name for model in models}
    if unknown:
        raise BundleError(f"EDGE_MODELS: no bundle is of model {min(unknown)!r}")
    return models


def _files(manifest: Manifest) -> list[File]:
    """What the edge runs of a bundle."""
    return [manifest.edge_variant, *manifest.heads.values()]


def _load(bundle: Bundle, settings: Settings, watchdog: Watchdog | None) -> LoadedModel:
    manifest = bundle.manifest
    own = settings.models.get(manifest.model, ModelPreferences())
    mode = own.mode or settings.mode
    defaults = ModelPreferences(
        mode=mode,
        cut=own.cut or manifest.edge_variant.cut,
        deadline_ms=own.deadline_ms or settings.deadline_ms,
        threshold=manifest.calibration.threshold if own.threshold is None else own.threshold,
        priority=own.priority,
        upload=own.upload,
        change_threshold=own.change_threshold,
    )
    try:
        cuts = tuple(cut.name for cut in manifest.cuts)
        check_mode(mode, own.cut if mode is Mode.SPLIT else None, cuts)
        if own.cut is not None:  # for the requests that ask for a split, whatever the mode of the others
            check_mode(Mode.SPLIT, own.cut, cuts)
    except InvalidInput as error:
        raise BundleError(f"the settings of model {manifest.model!r}: {error}") from error
    if manifest.preprocess is not None:
        manifest.preprocess.warm_up()

    statistics = Statistics()

    def timed(file: File) -> tuple[Timed, float]:
        engine = bundle.engine(file, threads=settings.threads, providers=PROVIDERS, watchdog=watchdog)
        batches = all(spec.shape[:1] == (-1,) for spec in (*engine.inputs, *engine.outputs))
        cost = BatchCost(time.monotonic)
        seconds = engine.time_runs(bundle.sample(file))
        cost.observe(1, seconds[len(seconds) // 2])
        inline = seconds[len(seconds) // 2] * 1000 <= settings.inline_ms
        limit = settings.max_batch if batches else 1
        return Timed(engine, cost, limit, inline, statistics.executed), seconds[-1]

    try:
        edge, slowest = timed(manifest.edge_variant)
        heads = {cut: timed(head)[0] for cut, head in manifest.heads.items()}
    except (InvalidInput, ModelError, NotReady) as error:  # the watchdog has ended a run
        raise BundleError(f"{bundle.folder}: {error}") from error
    _log.info(
        "serving %s version %s from %s: %s, one run %.2f ms, mode %s, threshold %.4f, deadline %s ms",
        manifest.model, manifest.version, bundle.folder, manifest.edge_variant.file, slowest * 1000,
        mode, defaults.threshold, defaults.deadline_ms,
    )  # fmt: skip
    return LoadedModel(manifest, bundle.digest, edge, heads, 2 * slowest + _MARGIN_S, defaults, statistics)
