"""Requests with less time than the cloud needs: still 200, still on time, and the breaker stays as it is."""

from collections.abc import Callable

import pytest

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.joint.device import Answers, Device
from tests.joint.services import Service, Services, eventually

MODES = ("cascade", "cloud", "split")
WORK = 200  # makes a run of the full model take some 50 ms


@pytest.fixture(scope="module")
def edge(module_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Service:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "colors", full_work=WORK)
    cloud = module_services.cloud(bundle)
    edge = module_services.edge(bundle, cloud.ports[1])
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0])
    eventually(
        lambda: device.predict(picture(UNSURE), deadline_ms=3000).source == "cloud",
        10,
        "the edge is connected",
    )
    return edge


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("deadline_ms", [1, 5, 10, 20])
def test_too_little_time_for_the_cloud(
    edge: Service, note: Callable[..., None], mode: str, deadline_ms: int
) -> None:
    device = Device(edge.ports[0])
    answers = Answers(device.predict(picture(UNSURE), mode=mode, deadline_ms=deadline_ms) for _ in range(20))
    assert {a.status for a in answers} == {200}
    assert {source for source, _ in answers.who} == {"edge_fallback"}
    assert answers.reasons <= ({"budget"} if deadline_ms == 1 else {"budget", "deadline", "breaker_open"})
    assert {a.label for a in answers} == {"red"}
    note(latest_after_deadline_ms=answers.latest_ms(), who=str(dict(answers.who)))


def test_impatient_devices_do_not_close_the_way_for_others(edge: Service) -> None:
    device = Device(edge.ports[0])
    for _ in range(10):
        assert device.predict(picture(UNSURE), deadline_ms=20).source == "edge_fallback"
    assert device.predict(picture(UNSURE), deadline_ms=3000).source == "cloud"
    assert edge.metrics().total("tandem_breaker_state") == 0


def test_sure_answers_need_no_time(edge: Service) -> None:
    answer = Device(edge.ports[0]).predict(picture(SURE), deadline_ms=1)
    assert (answer.status, answer.who) == (200, ("edge", "confident"))
