"""The cloud goes away under load and comes back: all is answered in time, and escalation resumes."""

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.joint.canary import CANARY
from tests.joint.device import Device, Load
from tests.joint.services import Services, eventually, free_port

DEADLINE_MS = 200
RATE = 80.0
RESUME_S = 2.0
ON_THE_WAY_S = 0.05  # at most, from a device to the cloud
IMAGES = (picture(UNSURE), picture(SURE), picture(UNSURE, "JPEG"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_cloud_dies_under_load_and_comes_back(
    services: Services, bundle: Path, note: Callable[..., None], how: signal.Signals
) -> None:
    port = free_port()
    cloud = services.cloud(bundle, grpc_port=port)
    edge = services.edge(bundle, port).wait_ready()
    cloud.wait_ready()
    device = Device(edge.ports[0])
    eventually(lambda: device.predict(IMAGES[0]).source == "cloud", 5, "the edge reaches the cloud")
    before = Counter(edge.metrics().by("tandem_requests_total", "source", "reason"))

    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        assert load.go_on(1.0).reasons == {"low_confidence", "confident"}
        killed = time.monotonic()
        cloud.signal(how)
        assert cloud.wait() == (0 if how is signal.SIGTERM else -signal.SIGKILL)
        gone = load.go_on(1.5)
        again = services.cloud(bundle, grpc_port=port).wait_ready()
        ready = time.monotonic()
        resumed_s = load.resumed_after(ready)
        after = load.go_on(1.0)
    answers = load.answers
    note(
        requests=len(answers),
        fallbacks=len(answers.of("edge_fallback")),
        latest_after_deadline_ms=answers.latest_ms(),
        slowest_ms=max(a.seconds for a in answers) * 1000,
        resumed_s=resumed_s,
    )
    assert resumed_s < RESUME_S
    assert gone.who.keys() == {("edge", "confident"), ("edge_fallback", "cloud_unreachable")}
    assert all(a.body["degraded"] for a in answers.of("edge_fallback"))
    assert after.reasons == {"low_confidence", "confident"}
    allowed = {"cloud_unreachable", "breaker_open"}
    assert answers.of("edge_fallback").reasons <= allowed
    if how is signal.SIGTERM:
        # It finished what it had begun. What a device sent just before may have come to it just after.
        known = killed - ON_THE_WAY_S - CANARY.stalled_s(killed - 1, killed)
        assert not answers.sent_in(0, known).of("edge_fallback")

    counted, cloud_counted = edge.metrics(), again.metrics()
    expected = answers.who + before
    assert counted.by("tandem_requests_total", "source", "reason") == expected
    fallbacks = sum(number for (source, _), number in expected.items() if source == "edge_fallback")
    assert counted.total("tandem_fallbacks_total") == fallbacks
    assert cloud_counted.total("tandem_cloud_requests_total", outcome="ok") >= len(after.of("cloud"))
    assert counted.total("tandem_cloud_connected") == 1


def test_an_edge_that_starts_alone_finds_the_cloud_later(
    services: Services, bundle: Path, note: Callable[..., None]
) -> None:
    port = free_port()
    edge = services.edge(bundle, port).wait_ready()
    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        alone = load.go_on(1.0)
        services.cloud(bundle, grpc_port=port).wait_ready()
        resumed_s = load.resumed_after(time.monotonic())
        after = load.go_on(0.5)
    note(latest_after_deadline_ms=load.answers.latest_ms(), resumed_s=resumed_s)
    assert resumed_s < RESUME_S
    assert alone.who.keys() == {("edge", "confident"), ("edge_fallback", "cloud_unreachable")}
    # A cloud that listens but is still loading turns calls away.
    assert load.answers.of("edge_fallback").reasons <= {"cloud_unreachable", "breaker_open"}
    assert after.reasons == {"low_confidence", "confident"}


def test_a_cloud_that_hangs_is_left_alone_until_it_moves_again(
    services: Services, bundle: Path, note: Callable[..., None]
) -> None:
    cloud = services.cloud(bundle)
    edge = services.edge(bundle, cloud.wait_ready().ports[1]).wait_ready()
    device = Device(edge.ports[0])
    eventually(lambda: device.predict(IMAGES[0]).source == "cloud", 5, "the edge reaches the cloud")
    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        load.go_on(0.5)
        cloud.signal(signal.SIGSTOP)
        hung = load.go_on(2.0)
        cloud.signal(signal.SIGCONT)
        resumed_s = load.resumed_after(time.monotonic())
        after = load.go_on(0.5)
    note(latest_after_deadline_ms=load.answers.latest_ms(), resumed_s=resumed_s)
    assert resumed_s < RESUME_S
    assert hung.of("edge_fallback").reasons == {"deadline", "breaker_open"}
    assert not hung.of("cloud")
    assert after.reasons == {"low_confidence", "confident"}


def test_without_a_cloud_in_the_settings_the_edge_says_so(services: Services, bundle: Path) -> None:
    edge = services.edge(bundle, "").wait_ready()
    device = Device(edge.ports[0])
    assert device.predict(IMAGES[0]).who == ("edge_fallback", "no_cloud")
    assert device.predict(IMAGES[1]).who == ("edge", "confident")
    assert edge.metrics().total("tandem_fallbacks_total", reason="no_cloud") == 1
