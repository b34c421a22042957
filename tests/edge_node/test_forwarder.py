"""When samples go up, at what pace, and what becomes of those that the cloud does not take."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge_node.disclosure import Disclosed, Disclosure
from edge_node.fleet_client import FleetClient
from edge_node.forwarder import MAX_TRIES, Forwarder
from edge_node.keeping import Reason
from edge_node.link import Link
from edge_node.outcome import EdgeAnswer
from edge_node.policy import Privacy
from edge_node.sample_store import Form, Sample
from tests.bundles import UNSURE, picture
from tests.edge_node.fleet_server import FleetServer, Way, fleet_server
from tests.edge_node.node import Node, node
from tests.edge_node.outbox import WITHIN_S, Box, box

pytestmark = pytest.mark.anyio
Status = grpc.StatusCode


class Setting:
    """A node's forwarder, its outbox, its way up, and clocks that stand still unless told."""

    def __init__(self, edge: Node, one: Box, fleet: FleetServer, way: Way, **changes: Any) -> None:
        self.edge, self.box, self.fleet, self.way = edge, one, fleet, way
        self.now = 1000.0
        self.link = Link()
        privacy = changes.get("privacy", Privacy.ANY)
        disclosure = Disclosure(edge.slots, edge.runner, edge.executor, privacy=privacy, max_pixels=1 << 20)
        self.forwarder = Forwarder(
            one.outbox,
            disclosure,
            FleetClient(way, "node-7", changes.get("max_message_bytes", 1 << 20)),
            self.link,
            one.metrics,
            share=changes.get("share", 1.0),
            clock=lambda: self.now,
        )

    def sample(self, number: int = 0, **changes: Any) -> Sample:
        """A sample of the model that is served."""
        model = self.edge.slots.get("colors")
        given: dict[str, Any] = {
            "key": f"{number:032x}", "kept_at": self.box.now, "reason": Reason.FALLBACK, "promised": False,
            "model": "colors", "version": "1", "digest": model.digest, "form": Form.IMAGE,
            "payload": picture(UNSURE), "edge": EdgeAnswer("red", 0, 0.5), "threshold": 0.8,
        }  # fmt: skip
        return Sample(**given | changes)

    def keep(self, *samples: Sample) -> None:
        """Put these into the outbox, and wait until they are there."""
        futures = [self.box.outbox.put(sample) for sample in samples]
        assert all(future.result(WITHIN_S) for future in futures)

    async def step(self, seconds: float = 10.0) -> float:
        """Time passes, and the forwarder looks."""
        self.now += seconds
        self.box.now += seconds
        return await self.forwarder.step()

    @property
    def keys(self) -> list[int]:
        """The numbers of the samples that the cloud has received."""
        return [int(request.key, 16) for request in self.fleet.received]


@contextlib.asynccontextmanager
async def setting(folder: Path, *bundles: Path, **changes: Any) -> AsyncIterator[Setting]:
    with box(folder / "outbox.db", max_age_s=1e9) as one, node(*bundles) as edge:
        async with fleet_server() as (fleet, way):
            yield Setting(edge, one, fleet, way, **changes)


@pytest.fixture
async def made(tmp_path: Path, colors: Path) -> AsyncIterator[Setting]:
    async with setting(tmp_path, colors) as one:
        yield one


async def test_the_oldest_goes_first_and_leaves_when_it_is_acknowledged(made: Setting) -> None:
    made.keep(*(made.sample(number) for number in range(3)))
    for left in (2, 1, 0):
        assert await made.step() == 0.0
        assert made.box.value("depth") == left
    assert await made.step() > 0
    assert made.keys == [0, 1, 2]
    assert made.box.value("forwarded_total") == 3
    request = made.fleet.received[0]
    assert (request.node, request.model, request.version) == ("node-7", "colors", "1")
    assert (request.image, request.reason, request.edge.label) == (picture(UNSURE), "fallback", "red")
    assert made.box.value("sent_bytes_total") == sum(made.way.sent) > 3 * len(request.image)


async def test_the_label_of_an_audit_says_whether_both_agree(made: Setting) -> None:
    audits = [
        made.sample(index, reason=Reason.AUDIT, edge=EdgeAnswer(label, index, 0.9))
        for index, label in enumerate(("red", "green", "blue"))
    ]
    made.keep(*audits, made.sample(7))
    for _ in range(5):
        await made.step()
    registry = made.box._registry
    agreed = {
        agree: registry.get_sample_value("tandem_audits_total", {"model": "colors", "agree": agree})
        for agree in ("true", "false")
    }
    assert agreed == {"true": 1, "false": 2}


async def test_it_keeps_to_its_share_of_the_link(tmp_path: Path, colors: Path) -> None:
    async with setting(tmp_path, colors, share=0.1) as made:
        made.keep(*(made.sample(number, payload=picture(UNSURE)) for number in range(60)))
        start = made.now
        while made.box.outbox.depth:
            await made.step(0.001)
        seconds = made.now - start
        assert sum(made.way.sent[:-1]) / seconds <= 32_000
        assert sum(made.way.sent) / seconds > 0.8 * 32_000


async def test_it_waits_for_an_idle_link_but_not_for_ever(made: Setting) -> None:
    made.keep(made.sample(0), made.sample(1))
    trip = made.link.depart(made.now, 100)
    for _ in range(3):
        assert await made.step(0.5) > 0
    assert made.keys == []
    made.link.arrive(trip, made.now, 100, 0.0)
    assert await made.step(0.05) > 0  # there may be more where that came from
    assert await made.step(0.3) == 0
    assert made.keys == [0]
    made.link.depart(made.now, 100)
    while made.keys == [0]:
        await made.step(0.5)
    assert made.keys == [0, 1]


async def test_nothing_goes_where_there_is_no_way(made: Setting) -> None:
    made.keep(made.sample())
    made.way.away = True
    assert await made.step() > 0
    made.way.away, made.way.switched_off = False, True
    await made.step()
    assert (made.keys, made.box.value("depth"), made.box.value("sent_bytes_total")) == ([], 1, 0)
    made.way.switched_off = False
    await made.step()
    assert made.keys == [0]


@pytest.mark.parametrize("status", [Status.INVALID_ARGUMENT, Status.OUT_OF_RANGE])
async def test_what_the_cloud_will_never_take_is_set_aside(made: Setting, status: grpc.StatusCode) -> None:
    made.fleet.statuses = [status, Status.OK]
    made.keep(made.sample(0), made.sample(1))
    for _ in range(4):
        await made.step()
    assert made.keys == [0, 1]
    assert made.box.value("poisoned_total") == made.box.value("set_aside") == 1
    assert made.box.rows("SELECT key, worth FROM samples") == [(f"{0:032x}", 0)]


@pytest.mark.parametrize("status", [Status.INTERNAL, Status.UNKNOWN, Status.DATA_LOSS])
async def test_at_what_the_cloud_fails_again_and_again_is_set_aside(
    made: Setting, status: grpc.StatusCode
) -> None:
    made.fleet.statuses = [status]
    made.keep(made.sample(0))
    for _ in range(50):
        await made.step(100)
    assert made.keys == [0] * MAX_TRIES
    assert made.box.value("poisoned_total") == 1


async def test_one_that_fails_does_not_stop_the_others(made: Setting) -> None:
    made.fleet.statuses = [Status.INTERNAL, Status.OK]
    made.keep(made.sample(0), made.sample(1))
    for _ in range(3):
        await made.step(0.5)
    assert made.keys == [0, 1, 0]
    assert made.box.value("depth") == 0


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.PERMISSION_DENIED])
async def test_while_the_cloud_takes_none_all_wait(
    made: Setting, status: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made.fleet.statuses = [status]
    made.keep(made.sample(0), made.sample(1))
    for _ in range(50):
        await made.step(3)
    assert 1 < len(made.keys) <= 50
    assert set(made.keys) == {0}
    made.fleet.statuses = [Status.OK]
    for _ in range(50):
        await made.step(3)
    assert made.box.value("depth") == made.box.value("poisoned_total") == 0
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (0 if status is Status.UNAVAILABLE else 2)


async def test_a_late_answer_is_nobody_s_fault(made: Setting) -> None:
    made.fleet.statuses = [Status.DEADLINE_EXCEEDED] * 9 + [Status.OK]
    made.keep(made.sample(0), made.sample(1))
    for _ in range(60):
        await made.step(20)
    assert made.keys[:2] == [0, 1]
    assert len(made.keys) == 11
    assert made.box.value("depth") == made.box.value("poisoned_total") == 0


async def test_a_message_over_the_cloud_s_limit_is_set_aside(made: Setting) -> None:
    made.fleet.statuses = [Status.RESOURCE_EXHAUSTED]
    made.fleet.details = "SERVER: Received message larger than max (5 vs. 4)"
    made.keep(made.sample(0))
    await made.step()
    assert made.box.value("poisoned_total") == 1


async def test_a_message_over_the_node_s_own_limit_is_never_sent(tmp_path: Path, colors: Path) -> None:
    async with setting(tmp_path, colors, max_message_bytes=100) as made:
        made.keep(made.sample(0))
        await made.step()
        assert (made.box.value("poisoned_total"), made.keys) == (1, [])


async def test_a_sample_over_which_there_is_a_bug_does_not_hold_up_the_others(
    made: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    message = made.forwarder._client.message

    def buggy(sample: Sample, disclosed: Disclosed) -> bytes:
        if sample.key == "0" * 32:
            raise RuntimeError("a bug")
        return message(sample, disclosed)

    made.forwarder._client.message = buggy  # type: ignore[method-assign]
    made.keep(*(made.sample(number) for number in range(3)))
    for _ in range(2 * MAX_TRIES):
        await made.step(60)
    assert (made.keys, made.box.value("poisoned_total"), made.box.value("depth")) == ([1, 2], 1, 0)
    assert caplog.text.count("RuntimeError: a bug") == MAX_TRIES


async def test_a_thousand_samples_of_another_bundle_are_put_off_by_a_few_writes(made: Setting) -> None:
    made.keep(*(made.sample(number, digest="e" * 64) for number in range(1000)))
    steps = 0
    while await made.step(0.0001) == 0.0:
        steps += 1
    assert steps <= 20
    assert made.keys == []


@pytest.mark.parametrize("status", [Status.FAILED_PRECONDITION, Status.NOT_FOUND])
async def test_samples_of_another_bundle_wait_until_it_is_there(
    made: Setting, status: grpc.StatusCode
) -> None:
    made.fleet.statuses = [status]
    made.keep(*(made.sample(number) for number in range(5)))
    for _ in range(20):
        await made.step(10)
    assert made.keys == [0]  # the others would fare no better
    made.fleet.statuses = [Status.OK]
    for _ in range(20):
        await made.step(60)
    assert sorted(made.keys) == [0, 0, 1, 2, 3, 4]
    assert made.box.value("depth") == made.box.value("poisoned_total") == 0


async def test_a_cloud_without_the_protocol_is_left_alone_until_it_is_another(
    made: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    made.fleet.statuses = [Status.UNIMPLEMENTED]
    made.keep(made.sample(0))
    for _ in range(50):
        await made.step(5)
    assert len(made.keys) == 1
    assert len(caplog.records) == 1
    made.fleet.statuses = [Status.OK]
    made.way.away = True
    await made.step(0.3)
    made.way.away = False
    await made.step(0.3)
    assert len(made.keys) == 2


async def test_samples_of_a_bundle_that_is_not_here_any_more_wait(made: Setting) -> None:
    made.keep(made.sample(0, digest="e" * 64), made.sample(1))
    for _ in range(3):
        await made.step()
    assert made.keys == [1]
    assert made.box.value("depth") == 1


async def test_a_damaged_image_is_set_aside_where_features_are_made_of_it(
    tmp_path: Path, colors: Path
) -> None:
    async with setting(tmp_path, colors, privacy=Privacy.FEATURES) as made:
        made.keep(made.sample(0, payload=b"no image"), made.sample(1))
        for _ in range(3):
            await made.step()
        assert made.keys == [1]
        assert made.box.value("poisoned_total") == 1
        assert made.fleet.received[0].WhichOneof("content") == "features"


async def test_it_forwards_by_itself_until_it_is_closed(made: Setting) -> None:
    made.forwarder.start()
    made.keep(made.sample())
    async with asyncio.timeout(WITHIN_S):
        while made.box.outbox.depth:  # noqa: ASYNC110 - another thread counts
            await asyncio.sleep(0.01)
    await made.forwarder.close()
    assert made.keys == [0]
