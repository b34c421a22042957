"""Mode `auto` in a whole node: which way is taken, what is said of it, and what a bad link makes of it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_node.cloud import CloudAnswer, Query
from edge_node.link import Link
from edge_node.navigator import Navigator
from edge_node.outcome import Outcome
from edge_node.policy import Payload, Privacy, Source
from inference_core.codec import unpack
from inference_core.errors import CloudRefused, CloudUnreachable, DeadlineExceeded
from inference_core.tensors import from_bytes
from tests.bundles import SURE, UNSURE, picture, pixels, write_bundle
from tests.edge_node.node import CloudSimulator, Node, node, noise

pytestmark = pytest.mark.anyio


class Road(CloudSimulator):
    """A cloud at the end of a made-up link: `round_trip_s`, and `rate` in bytes per second. Nobody waits for
    it: its clock jumps instead."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.round_trip_s, self.rate = 0.02, 1e7
        self.unpacks = True
        self._jumped_s = 0.0

    def clock(self) -> float:
        return time.monotonic() + self._jumped_s

    async def infer(self, query: Query, timeout_s: float) -> CloudAnswer:
        if ".packed." in query.model and not self.unpacks:
            raise CloudRefused("NOT_FOUND", "model_missing")
        answer = await super().infer(self._unpacked(query), timeout_s)
        arrays = query.inputs.values()
        size = sum(sum(map(len, a.flat)) if a.dtype == object else a.nbytes for a in arrays)
        took = self.round_trip_s + size / self.rate
        self._jumped_s += min(took, timeout_s)
        if took > timeout_s:
            raise DeadlineExceeded("late")
        told: dict[str, Any] = {"tandem_total_ms": 0.1}
        return CloudAnswer(answer.logits, told, size + 200, answer.bytes_down, took)

    def _unpacked(self, query: Query) -> Query:
        name, packed, cut = query.model.partition(".packed.")
        found = self._bundles[name.partition(".")[0]].manifest.cut(cut)
        if not packed or found is None:
            return query
        inputs: dict[str, Any] = {
            tensor.name: from_bytes(
                tensor.name,
                tensor.datatype,
                (1, *tensor.shape),
                unpack(query.inputs[tensor.name][0], tensor.bytes),
            )
            for tensor in found.boundary
        }
        return replace(query, model=f"{name}.tail.{cut}", inputs=inputs)


@pytest.fixture
def road(tmp_path: Path) -> Road:
    return Road(write_bundle(tmp_path / "colors"))


def on(road: Road, folder: Path, **changes: Any) -> Any:
    privacy = changes.get("privacy", Privacy.ANY)
    guide = Navigator(Link(), payload=Payload.SMALLEST, privacy=privacy, clock=road.clock, draw=lambda: 1.0)
    return node(folder, cloud=road, navigator=guide, mode="auto", **({"deadline_ms": 2000} | changes))


@pytest.fixture
def edge(road: Road, tmp_path: Path) -> Iterator[Node]:
    with on(road, tmp_path / "colors") as made:
        yield made


async def settled(edge: Node, sample: bytes, times: int = 12) -> Outcome:
    """What becomes of `sample` once the link is known."""
    for _ in range(times):
        outcome = await edge.ask(sample)
    return outcome


async def test_the_sure_edge_answers_and_the_unsure_asks(edge: Node, road: Road) -> None:
    sure = await edge.ask(picture(SURE))
    assert (sure.source, sure.reason, sure.way, sure.predicted_ms) == (Source.EDGE, "confident", None, None)
    unsure = await edge.ask(picture(UNSURE))
    assert (unsure.source, unsure.reason, unsure.prediction.label) == (Source.CLOUD, "low_confidence", "blue")
    assert unsure.mode == "auto"
    assert len(road.asked) == 1


async def test_the_outcome_says_what_was_predicted(edge: Node) -> None:
    outcome = await settled(edge, picture(UNSURE))
    assert outcome.way is not None
    assert outcome.prospects_ms.keys() == {
        *("image", "tensor", "features.pixels", "features.pixels.packed", "features.means"),
        "features.means.packed",
    }
    assert outcome.predicted_ms == outcome.prospects_ms[outcome.way]


async def test_a_slow_link_takes_the_fewest_bytes(edge: Node, road: Road) -> None:
    road.rate = 2000.0
    outcome = await settled(edge, noise(), 30)
    assert outcome.way in ("features.means", "features.means.packed")
    assert outcome.bytes_up < 300


async def test_an_overdue_answer_makes_the_next_ones_come_at_once(edge: Node, road: Road) -> None:
    await settled(edge, picture(UNSURE))
    road.round_trip_s = 30.0
    late = await edge.ask(picture(UNSURE))
    assert (late.source, late.reason, late.degraded) == (Source.EDGE_FALLBACK, "deadline", True)
    assert road.timeouts[-1] < 0.5, "it is not waited for until the deadline"
    asked = len(road.asked)
    spared = await edge.ask(picture(UNSURE))
    assert (spared.source, spared.reason) == (Source.EDGE_FALLBACK, "link_lost")
    assert len(road.asked) == asked


async def test_no_connection_is_a_lost_link(edge: Node, road: Road) -> None:
    await settled(edge, picture(UNSURE))
    road.failure = CloudUnreachable("gone")
    assert (await edge.ask(picture(UNSURE))).reason == "cloud_unreachable"
    assert (await edge.ask(picture(UNSURE))).reason == "link_lost"


async def test_what_would_be_late_is_not_sent(road: Road, tmp_path: Path) -> None:
    road.round_trip_s = 0.4
    with on(road, tmp_path / "colors", deadline_ms=1000) as edge:
        await settled(edge, picture(UNSURE))
        asked = len(road.asked)
        outcome = await edge.ask(picture(UNSURE), deadline_ms=150)
        assert (outcome.source, outcome.reason) == (Source.EDGE_FALLBACK, "link_slow")
        assert len(road.asked) == asked
        assert (await edge.ask(picture(UNSURE))).source is Source.CLOUD


async def test_a_cloud_that_does_not_unpack_is_asked_without(edge: Node, road: Road) -> None:
    road.rate, road.unpacks = 2000.0, False
    for _ in range(30):
        outcome = await edge.ask(noise())
        times = outcome.timings_ms
        assert times.get("cloud", 0.0) <= times["total"], "what is asked twice is not counted twice"
    assert (outcome.source, outcome.way) == (Source.CLOUD, "features.means")
    assert not any("packed" in way for way in outcome.prospects_ms)


@pytest.mark.parametrize(
    ("privacy", "source", "reason"),
    [
        (Privacy.FEATURES, Source.CLOUD, "low_confidence"),
        (Privacy.NOTHING, Source.EDGE_FALLBACK, "privacy"),
    ],
)
async def test_privacy_is_kept(
    road: Road, tmp_path: Path, privacy: Privacy, source: Source, reason: str
) -> None:
    with on(road, tmp_path / "colors", privacy=privacy) as edge:
        outcome = await settled(edge, picture(UNSURE))
        assert (outcome.source, outcome.reason) == (source, reason)
        assert all(".tail." in query.model for query in road.asked)


@pytest.mark.parametrize("mode", ["cloud", "cascade"])
async def test_privacy_binds_other_modes_too(road: Road, tmp_path: Path, mode: str) -> None:
    with on(road, tmp_path / "colors", privacy=Privacy.FEATURES) as edge:
        outcome = await edge.ask(picture(UNSURE), mode=mode)
        assert (outcome.source, outcome.reason, road.asked) == (Source.EDGE_FALLBACK, "privacy", [])
        assert (await edge.ask(picture(UNSURE), mode="split")).source is Source.CLOUD


async def test_an_early_exits_features_cost_no_head(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "exit", exit_at="means")
    road = Road(folder)
    road.rate = 2000.0
    with on(road, folder) as edge:
        outcome = await settled(edge, noise(), 20)
    assert outcome.way in ("features.means", "features.means.packed")
    assert "head" not in outcome.timings_ms


async def test_a_tensor_has_no_image_way(edge: Node) -> None:
    outcome = await edge.ask(pixels(UNSURE))
    assert outcome.source is Source.CLOUD
    assert "image" not in outcome.prospects_ms


async def test_without_a_cloud_the_edge_answers(road: Road, tmp_path: Path) -> None:
    with node(tmp_path / "colors", mode="auto") as edge:
        outcome = await edge.ask(picture(UNSURE))
    assert (outcome.source, outcome.reason) == (Source.EDGE_FALLBACK, "no_cloud")
