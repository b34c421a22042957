"""Two clouds: both work, one may go at any time, and devices notice nothing of it."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.joint.device import Load
from tests.joint.services import Service, Services, eventually, free_port

DEADLINE_MS = 250
RATE = 120.0
IMAGES = (picture(UNSURE), picture(SURE))


def answered(cloud: Service) -> float:
    """Requests that a cloud has answered."""
    return cloud.metrics().total("tandem_cloud_requests_total", outcome="ok")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_of_two_clouds_goes_under_load_and_comes_back(
    services: Services, tmp_path: Path, note: Callable[..., None], how: signal.Signals
) -> None:
    bundle = write_bundle(tmp_path / "colors")
    ports = [free_port(), free_port()]
    clouds = [services.cloud(bundle, grpc_port=port) for port in ports]
    edge = services.edge(bundle, ",".join(f"127.0.0.1:{port}" for port in ports)).wait_ready()
    for cloud in clouds:
        cloud.wait_ready()
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 2, 5, "both are connected")
    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        load.go_on(0.5)
        shares = [answered(cloud) for cloud in clouds]
        clouds[0].signal(how)
        clouds[0].wait()
        load.go_on(1.0)
        again = services.cloud(bundle, grpc_port=ports[0]).wait_ready()
        back_s = eventually(lambda: answered(again) > 0, 3, "the one that came back is asked")
        load.go_on(0.3)
    answers, counted = load.answers, edge.metrics()
    degraded = answers.of("edge_fallback")
    attempts = counted.by("tandem_cloud_attempts_total", "kind")
    note(
        requests=len(answers), degraded=len(degraded), back_s=back_s, attempts=str(attempts),
        latest_after_deadline_ms=answers.latest_ms(),
    )  # fmt: skip
    assert min(shares) >= 0.3 * sum(shares), "they take turns"
    # There is a budget for second tries, which a burst may use up.
    assert len(degraded) <= 0.02 * len(answers), f"{len(degraded)} noticed: {degraded.who}"
    asked = len(answers.of("cloud"))
    assert sum(attempts.values()) <= 1.1 * asked + 5


def test_switched_off_in_the_settings(services: Services, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colors")
    cloud = services.cloud(bundle).wait_ready()
    edge = services.edge(bundle, cloud.ports[1], escalate="false").wait_ready()
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")
    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        load.go_on(0.3)
    assert load.answers.who.keys() == {("edge", "confident"), ("edge_fallback", "switched_off")}
    assert edge.metrics().total("tandem_escalation_enabled") == 0
    assert edge.metrics().total("tandem_cloud_attempts_total") == 0


def test_a_budget_of_escalations(services: Services, tmp_path: Path, note: Callable[..., None]) -> None:
    bundle = write_bundle(tmp_path / "colors")
    cloud = services.cloud(bundle).wait_ready()
    edge = services.edge(bundle, cloud.ports[1], max_escalations_per_s=10).wait_ready()
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")
    began = time.monotonic()
    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        load.go_on(2.0)
    seconds = time.monotonic() - began
    note(cloud=len(load.answers.of("cloud")), latest_after_deadline_ms=load.answers.latest_ms())
    assert load.answers.of("edge_fallback").reasons == {"escalation_budget"}
    assert len(load.answers.of("cloud")) <= 10 + 10 * seconds
    assert len(load.answers.of("cloud")) >= 8 * seconds
