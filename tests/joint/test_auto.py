"""Mode `auto` with both services over an emulated link: the way follows the link, and so does the waiting."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.conditions import Conditions
from benchmarks.link import Emulator
from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.edge_node.node import noise
from tests.joint.device import Device
from tests.joint.services import Service, Services, eventually

NEAR = Conditions(0.004, 1e8, 1e8)
SLOW = Conditions(0.1, 2e4, 2e5)
THIN = ("features.means", "features.means.packed")
GONE = Conditions(0.1, 2e4, 2e5, out=True)


@pytest.fixture(scope="module")
def linked(
    module_services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Emulator]]:
    bundle: Path = write_bundle(tmp_path_factory.mktemp("bundle") / "colors")
    cloud = module_services.cloud(bundle).wait_ready()
    with Emulator() as links:
        port = links.add(cloud.ports[1])
        edge = module_services.edge(bundle, port, mode="auto", deadline_ms=3000).wait_ready()
        yield edge, links


@pytest.fixture
def device(linked: tuple[Service, Emulator]) -> Device:
    edge, links = linked
    links.set(NEAR)
    made = Device(edge.ports[0])
    eventually(lambda: made.predict(picture(UNSURE)).source == "cloud", 10, "the cloud answers")
    return made


def test_the_way_follows_the_link(linked: tuple[Service, Emulator], device: Device) -> None:
    large = noise()  # a PNG larger than the features
    near = [device.predict(large).body for _ in range(10)]
    linked[1].set(SLOW)
    eventually(lambda: device.predict(large).body["way"] in THIN, 5, "the features go up")
    slow = [device.predict(large).body for _ in range(5)]
    # All but one each, for which the machine itself may have stood still.
    assert sum(body["source"] == "cloud" for body in near) >= 9
    assert sum(body["source"] == "cloud" and body["way"] in THIN for body in slow) >= 4
    slow = [body for body in slow if body["source"] == "cloud"]
    assert all(body["bytes_up"] < len(large) / 2 for body in slow)
    off = [body["predicted_ms"] / body["timings_ms"]["total"] for body in slow]
    assert median(off) == pytest.approx(1, rel=0.5)
    assert _total_ms(near) < 100 < _total_ms(slow)


def _total_ms(bodies: list[dict[str, Any]]) -> float:
    return float(median(body["timings_ms"]["total"] for body in bodies))


def test_a_link_that_goes_away_costs_a_moment_and_is_used_again(
    linked: tuple[Service, Emulator], device: Device, note: Callable[..., None]
) -> None:
    links = linked[1]
    links.set(GONE)
    late = device.predict(picture(UNSURE))
    assert (late.source, late.body["reason"]) == ("edge_fallback", "deadline")
    assert late.body["timings_ms"]["total"] < 2000, "it is not waited for until the deadline"
    spared = [device.predict(picture(UNSURE)) for _ in range(5)]
    assert {answer.body["reason"] for answer in spared} == {"link_lost"}
    assert device.predict(picture(SURE)).source == "edge"
    links.set(NEAR)
    began = time.monotonic()
    eventually(lambda: device.predict(picture(UNSURE)).source == "cloud", 2, "the cloud is asked again")
    note(found_again_s=time.monotonic() - began, gave_up_ms=late.body["timings_ms"]["total"])


def test_the_link_is_shown(linked: tuple[Service, Emulator], device: Device) -> None:
    linked[1].set(SLOW)

    def rate() -> int:
        """As far as it is known: messages of like size do not tell."""
        for image in (noise(), picture(UNSURE)):
            device.predict(image, mode="cloud")
        found = linked[0].metrics().by("tandem_link_bandwidth_bytes_per_second", "direction")
        return found.get(("up",), 0)

    def round_trip_s() -> float:
        return linked[0].metrics().total("tandem_link_round_trip_seconds")

    eventually(
        lambda: SLOW.up / 2 < rate() < SLOW.up * 2 and 0.05 < round_trip_s() < 0.2, 15, "both are known"
    )
    metrics = linked[0].metrics()
    assert metrics.total("tandem_link_estimate_age_seconds") < 5
