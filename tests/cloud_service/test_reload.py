"""The hot swap: all or nothing, one at a time, and what has begun ends on what it took."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served, load_models
from cloud_service.reload import Reload
from cloud_service.settings import Settings
from inference_core.errors import BundleError, NotReady, VersionMismatch
from inference_core.vitals import Vitals
from tests.bundles import UNSURE, pixels, write_bundle

pytestmark = pytest.mark.anyio


class Rig:
    """Models and their reload over `folders`, which a test may change."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.registry = CollectorRegistry()
        self.models = Models()
        self.runs = ThreadPoolExecutor(1)
        self.metrics = Metrics(self.registry)
        self.reload = Reload(self.models, self.load, self.metrics, Vitals(self.registry))

    async def load(self, loaded: Sequence[Served]) -> list[Served]:
        given: dict[str, Any] = {"bundles": self.folders, "inline_ms": 0}
        return load_models(Settings(**given), self.metrics, self.runs, time.monotonic, loaded=loaded)

    def series(self, name: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name
        }

    def swaps(self, result: str) -> float | None:
        return self.registry.get_sample_value("tandem_model_swaps_total", {"result": result})


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(write_bundle(tmp_path / "v1"))
    await made.reload.start()
    yield made
    await made.models.close()
    made.runs.shutdown()


async def test_calls_that_took_the_old_version_are_answered_by_it(rig: Rig, tmp_path: Path) -> None:
    old = rig.models.get("colors")
    waiting = asyncio.create_task(old.batcher.submit({"input": pixels(UNSURE)}, math.inf))
    rig.folders = (write_bundle(tmp_path / "v2", version="2", full_bias=(0.0, 60.0, 0.0)),)
    told = await rig.reload.run()
    assert told["result"] == "ok"
    new = rig.models.get("colors")
    late = await old.batcher.submit({"input": pixels(UNSURE)}, math.inf)
    for batched, label in ((await waiting, 2), (late, 2)):
        assert batched.outputs["logits"][0].argmax() == label
    assert (await new.batcher.submit({"input": pixels(UNSURE)}, math.inf)).outputs["logits"][0].argmax() == 1
    assert {new.version, *rig.series("tandem_model_info", "version")} == {"2"}
    with pytest.raises(VersionMismatch):
        rig.models.get("colors", "1")
    assert rig.registry.get_sample_value("tandem_queue_depth", {"model": "colors"}) == 0


async def test_the_same_again_is_no_swap(rig: Rig) -> None:
    before = rig.models.all()
    assert (await rig.reload.run())["result"] == "unchanged"
    assert rig.models.all() == before
    assert rig.swaps("unchanged") == 1


async def test_a_bundle_that_is_refused_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    before = rig.models.all()
    rig.folders = (write_bundle(tmp_path / "new", model="new"), tmp_path / "nowhere")
    with pytest.raises(BundleError, match="nowhere"):
        await rig.reload.run()
    rig.folders = (write_bundle(tmp_path / "v2", version="2"), write_bundle(tmp_path / "v3", version="3"))
    with pytest.raises(BundleError, match="two bundles give a model"):
        await rig.reload.run()
    assert rig.models.all() == before
    assert rig.series("tandem_model_info", "version") == {"1"}
    assert "new" not in rig.series("tandem_model_info", "model")
    assert rig.swaps("refused") == 2


async def test_a_model_that_is_gone_leaves_no_series(rig: Rig, tmp_path: Path) -> None:
    rig.folders = (write_bundle(tmp_path / "other", model="other", cuts=()),)
    assert (await rig.reload.run())["result"] == "ok"
    for name in ("tandem_model_info", "tandem_queue_depth", "tandem_queue_limit"):
        assert rig.series(name, "model") == {"other"}


async def test_not_after_the_service_serves(rig: Rig) -> None:
    rig.models.ready = False
    with pytest.raises(NotReady):
        await rig.reload.run()
