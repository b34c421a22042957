"""The hot swap: all or nothing, one at a time, and what has begun ends on what it took."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edge_node.metrics import Metrics
from edge_node.model_slot import LoadedModel, ModelSlots, load_models
from edge_node.reload import Reload
from edge_node.settings import Settings
from inference_core.errors import BundleError, NotReady
from inference_core.vitals import Vitals
from tests.bundles import write_bundle

pytestmark = pytest.mark.anyio


class Rig:
    """Slots and their reload over `folders`, which a test may change."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.registry = CollectorRegistry()
        self.slots = ModelSlots()
        self.told: list[set[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reload = Reload(
            self.slots,
            self.load,
            Metrics(self.registry),
            Vitals(self.registry),
            lambda d: self.told.append(set(d)),
        )

    async def load(self, loaded: Sequence[LoadedModel]) -> list[LoadedModel]:
        await self.gate.wait()
        given: dict[str, Any] = {"bundles": self.folders}
        return load_models(Settings(**given), loaded=loaded)

    def series(self, name: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name
        }

    def swaps(self, result: str) -> float | None:
        return self.registry.get_sample_value("tandem_model_swaps_total", {"result": result})


async def test_a_new_version_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    rig = Rig(write_bundle(tmp_path / "v1"), write_bundle(tmp_path / "other", model="other"))
    assert await rig.reload.start() == ["colors", "other"]
    taken, other = rig.slots.get("colors"), rig.slots.get("other")
    rig.folders = (write_bundle(tmp_path / "v2", version="2"), rig.folders[1])
    told = await rig.reload.run()
    assert told["result"] == "ok"
    assert [(m["name"], m["version"]) for m in told["models"]] == [("colors", "2"), ("other", "1")]
    assert rig.slots.get("colors").manifest.version == "2"
    assert rig.slots.get("other") is other  # the same bundle is not loaded again
    assert taken.manifest.version == "1"
    assert rig.series("tandem_model_info", "digest") == {m["digest"][:12] for m in told["models"]}
    assert rig.told[-1] == {m["digest"] for m in told["models"]}
    assert (rig.swaps("ok"), rig.swaps("unchanged"), rig.swaps("refused")) == (1, 0, 0)
    gone = weakref.ref(taken.edge.engine)
    del taken
    gc.collect()
    assert gone() is None


async def test_the_same_again_is_no_swap(tmp_path: Path) -> None:
    rig = Rig(write_bundle(tmp_path / "v1"))
    await rig.reload.start()
    model = rig.slots.get("colors")
    assert (await rig.reload.run())["result"] == "unchanged"
    assert rig.slots.get("colors") is model
    assert rig.swaps("unchanged") == 1


async def test_a_bundle_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    rig = Rig(write_bundle(tmp_path / "v1"))
    await rig.reload.start()
    model = rig.slots.get("colors")
    rig.folders = (write_bundle(tmp_path / "new", model="new"), tmp_path / "nowhere")
    with pytest.raises(BundleError, match="nowhere"):
        await rig.reload.run()
    assert rig.slots.all() == [model]
    assert rig.series("tandem_model_info", "model") == {"colors"}
    assert rig.swaps("refused") == 1


async def test_a_model_that_is_gone_leaves_no_series(tmp_path: Path) -> None:
    rig = Rig(write_bundle(tmp_path / "v1"), write_bundle(tmp_path / "other", model="other"))
    await rig.reload.start()
    rig.folders = rig.folders[:1]
    assert (await rig.reload.run())["result"] == "ok"
    assert rig.series("tandem_model_info", "model") == {"colors"}
    assert rig.series("tandem_threshold", "model") == {"colors"}


async def test_one_at_a_time_and_neither_before_nor_after_the_node_serves(tmp_path: Path) -> None:
    rig = Rig(write_bundle(tmp_path / "v1"))
    with pytest.raises(NotReady):
        await rig.reload.run()
    await rig.reload.start()
    rig.gate.clear()
    first = asyncio.create_task(rig.reload.run())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await rig.reload.run()
    rig.slots.ready = False  # it is told to stop meanwhile
    rig.gate.set()
    with pytest.raises(NotReady, match="stopping"):
        await first
    assert rig.slots.ready is False
