"""The link between edge and cloud fails in every way that links do; devices get their answers in time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.joint.device import Answers, Device, Load
from tests.joint.proxy import REFUSE, SILENT, Fault, Proxy, Way
from tests.joint.services import Service, Services, eventually

DEADLINE_MS = 250
RATE = 80.0
RESUME_S = 2.0
FORGOTTEN_S = 4.0  # a good second of silence, the next trial, another connection, and a trial on that
IMAGES = (picture(UNSURE), picture(SURE))
OPEN = 2.0
WAIT_MS = 8.0  # what asking a link that answers at once, with a failure, may cost the typical request


@dataclass
class Linked:
    """An edge whose way to the cloud leads through the proxy."""

    edge: Service
    cloud: Service
    proxy: Proxy

    @property
    def attempts(self) -> float:
        """Messages that the edge has sent up so far."""
        return self.edge.metrics().total("tandem_cloud_attempts_total")

    def load(self, **query: object) -> Load:
        """Devices that ask half the time for what the edge is sure of, half for what it is not."""
        return Load(self.edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS, **query)


@pytest.fixture(scope="module")
def both(module_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    bundle: Path = write_bundle(tmp_path_factory.mktemp("bundle") / "colors")
    cloud = module_services.cloud(bundle).wait_ready()
    with Proxy(cloud.ports[1]) as proxy:
        yield Linked(module_services.edge(bundle, proxy.port).wait_ready(), cloud, proxy)


@pytest.fixture
def linked(both: Linked) -> Iterator[Linked]:
    """The link, whole before and after the test."""
    both.proxy.heal()
    device = Device(both.edge.ports[0])
    eventually(lambda: device.predict(IMAGES[0]).source == "cloud", 10, "the cloud answers through the proxy")
    yield both
    both.proxy.heal()


SLOW = {"deadline", "breaker_open"}
GONE = {"cloud_unreachable"}


@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        pytest.param(REFUSE, GONE, id="refused"),
        pytest.param(SILENT, SLOW, id="silent"),
        pytest.param(Fault(silent=frozenset({Way.UP})), SLOW, id="silent upwards"),
        pytest.param(Fault(silent=frozenset({Way.DOWN})), SLOW, id="silent downwards"),
        pytest.param(replace(SILENT, reset_first=True), GONE, id="reset, then silent"),
        pytest.param(Fault(delay_s=0.4), SLOW, id="slow"),
        pytest.param(Fault(cut_answers=True), GONE, id="cut in mid-answer"),
        pytest.param(Fault(drip_s=0.01), SLOW, id="a byte at a time"),
        pytest.param(Fault(garble=True), GONE, id="garbage"),
    ],
)
def test_a_failing_link_delays_no_answer_and_is_used_again_when_it_is_whole(
    linked: Linked, note: Callable[..., None], fault: Fault, reasons: set[str]
) -> None:
    attempts_before = linked.attempts
    with linked.load() as load:
        before = load.go_on(0.3)
        linked.proxy.begin(fault)
        began = time.monotonic()
        during = load.go_on(1.6)
        ended = time.monotonic()
        linked.proxy.heal()
        resumed_s = load.resumed_after(ended)
        after = load.go_on(0.3)
    answers = load.answers
    attempts = linked.attempts - attempts_before
    unsure = len(answers) - len(answers.of("edge"))
    note(
        latest_after_deadline_ms=answers.latest_ms(),
        attempts=f"{attempts:.0f} for {unsure}",
        resumed_s=resumed_s,
        fallback_p50_ms=during.of("edge_fallback").p50_ms,
        edge_p50_ms=during.of("edge").p50_ms,
        reasons=str({reason: n for (_, reason), n in during.of("edge_fallback").who.items()}),
    )
    assert before.reasons == after.reasons == {"low_confidence", "confident"}
    assert attempts <= 1.1 * unsure
    assert not answers.sent_in(began, ended - DEADLINE_MS / 1000).of("cloud")
    assert during.of("edge_fallback").reasons == reasons
    assert during.of("edge_fallback").p50_ms < 2 * during.of("edge").p50_ms + WAIT_MS
    assert all(a.body["degraded"] and a.label == "red" for a in answers.of("edge_fallback"))
    assert not any(a.body["degraded"] for a in answers if a.source != "edge_fallback")
    assert resumed_s < RESUME_S


@pytest.mark.parametrize(("mode", "cut"), [("cloud", ""), ("split", "pixels"), ("split", "means")])
@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        pytest.param(REFUSE, GONE, id="refused"),
        pytest.param(Fault(delay_s=0.4), SLOW, id="slow"),
        pytest.param(Fault(cut_answers=True), GONE, id="cut in mid-answer"),
    ],
)
def test_the_edge_model_steps_in_where_it_would_not_have_run(
    linked: Linked, mode: str, cut: str, fault: Fault, reasons: set[str]
) -> None:
    with linked.load(mode=mode, **({"cut": cut} if cut else {})) as load:
        assert load.go_on(0.2).reasons == {"mode"}
        linked.proxy.begin(fault)
        during = load.go_on(0.6)
        linked.proxy.heal()
    load.answers.latest_ms()
    assert {source for source, _ in during.who} == {"edge_fallback"}
    assert during.reasons <= reasons
    assert all(a.label == "red" and a.body["edge"]["label"] == "red" for a in during)


def test_the_breaker_spares_devices_a_silent_cloud(linked: Linked, note: Callable[..., None]) -> None:
    def state() -> float:
        return linked.edge.metrics().total("tandem_breaker_state")

    changes = linked.edge.metrics().by("tandem_breaker_transitions_total", "to")
    with linked.load() as load:
        edge_only = load.go_on(0.6).of("edge")
        linked.proxy.begin(SILENT)
        opened_s = eventually(lambda: state() == OPEN, 2, "the breaker opens")
        spared = load.go_on(2.0)
        linked.proxy.heal()
        resumed_s = load.resumed_after(time.monotonic())
        eventually(lambda: state() == 0, 1, "the breaker closes")
    fallbacks = spared.of("edge_fallback")
    note(
        opened_s=opened_s,
        fallback_p50_ms=fallbacks.p50_ms,
        edge_p50_ms=edge_only.p50_ms,
        resumed_s=resumed_s,
        latest_after_deadline_ms=load.answers.latest_ms(),
    )
    assert fallbacks.p50_ms < 2 * max(edge_only.p50_ms, spared.of("edge").p50_ms) + WAIT_MS
    # Sent before it opened; those that try the cloud since then are waited for by nobody.
    late = [a for a in spared.sent_in(spared[0].sent + DEADLINE_MS / 1000) if a.reason == "deadline"]
    assert not late, "a device waited for a trial"
    assert resumed_s < RESUME_S
    rises = linked.edge.metrics().by("tandem_breaker_transitions_total", "to")
    assert rises["closed",] - changes.get(("closed",), 0) == 1
    assert rises["half_open",] - changes.get(("half_open",), 0) >= 2


def test_impatient_devices_are_spared_a_silent_cloud(linked: Linked, note: Callable[..., None]) -> None:
    device = Device(linked.edge.ports[0])
    linked.proxy.begin(SILENT)
    answers = Answers(device.predict(IMAGES[0], deadline_ms=40) for _ in range(60))
    note(latest_after_deadline_ms=answers.latest_ms(), who=str(dict(answers.who)))
    assert {source for source, _ in answers.who} == {"edge_fallback"}
    assert answers.who["edge_fallback", "deadline"] <= 8
    assert answers.who["edge_fallback", "breaker_open"] >= 50


def test_a_cloud_too_slow_for_the_impatient_goes_on_answering_the_patient(
    linked: Linked, note: Callable[..., None]
) -> None:
    linked.proxy.begin(Fault(delay_s=0.03))
    device = Device(linked.edge.ports[0])
    hasty, patient = [], []
    for _ in range(25):
        hasty.append(device.predict(IMAGES[0], deadline_ms=40))
        patient.append(device.predict(IMAGES[0], deadline_ms=2000))
    note(hasty=str(dict(Answers(hasty).who)), latest_after_deadline_ms=Answers(hasty + patient).latest_ms())
    assert Answers(patient).who == {("cloud", "low_confidence"): 25}
    assert Answers(hasty).who["edge_fallback", "breaker_open"] >= 15


def test_a_connection_that_the_path_has_forgotten_is_replaced(
    linked: Linked, note: Callable[..., None]
) -> None:
    with linked.load() as load:
        load.go_on(0.3)
        linked.proxy.begin(Fault(forget=True))
        forgotten = time.monotonic()
        load.go_on(0.2)
        resumed_s = load.resumed_after(forgotten + 0.1)
        after = load.go_on(0.5)
    note(resumed_s=resumed_s, latest_after_deadline_ms=load.answers.latest_ms())
    assert resumed_s < FORGOTTEN_S
    assert after.reasons == {"low_confidence", "confident"}


def test_an_edge_that_starts_behind_a_silent_link(
    linked: Linked, services: Services, tmp_path: Path, note: Callable[..., None]
) -> None:
    linked.proxy.begin(SILENT)
    bundle = write_bundle(tmp_path / "colors")
    edge = services.edge(bundle, linked.proxy.port).wait_ready()
    with Load(edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
        alone = load.go_on(3.0)  # longer than one attempt to connect may take
        linked.proxy.heal()
        resumed_s = load.resumed_after(time.monotonic())
    note(
        latest_after_deadline_ms=load.answers.latest_ms(),
        resumed_s=resumed_s,
        fallback_p50_ms=alone.of("edge_fallback").p50_ms,
        edge_p50_ms=alone.of("edge").p50_ms,
    )
    assert alone.of("edge_fallback").p50_ms < 2 * alone.of("edge").p50_ms + WAIT_MS
    assert alone.who.keys() == {("edge", "confident"), ("edge_fallback", "cloud_unreachable")}
    assert resumed_s < RESUME_S


def test_a_link_that_comes_and_goes(linked: Linked, note: Callable[..., None]) -> None:
    with linked.load() as load:
        for fault in (REFUSE, SILENT, Fault(cut_answers=True), replace(SILENT, reset_first=True)) * 3:
            linked.proxy.begin(fault)
            load.go_on(0.15)
            linked.proxy.heal()
            load.go_on(0.1)
        resumed_s = load.resumed_after(time.monotonic())
    note(
        latest_after_deadline_ms=load.answers.latest_ms(),
        resumed_s=resumed_s,
        who=str(dict(load.answers.who)),
    )
    assert resumed_s < RESUME_S
    eventually(
        lambda: linked.edge.metrics().total("tandem_inflight_requests") == 0, 1, "nothing is left over"
    )
    eventually(
        lambda: linked.cloud.metrics().total("tandem_cloud_inflight_requests") == 0, 1, "nor in the cloud"
    )
