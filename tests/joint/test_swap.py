"""Bundles are swapped under load: nobody notices, and each answer is from exactly one version."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import wedges
from tests.bundles import SURE, UNSURE, picture, replace_file, write_bundle
from tests.joint.admin import operate, point, reload
from tests.joint.device import Device, Load
from tests.joint.services import Service, Services, eventually

SWAPS = 6
GROWTH_BYTES = 24 << 20
# Version and who answers: what they say of UNSURE.
SAYS = {
    ("1", "cloud"): "blue",
    ("1", "edge_fallback"): "red",
    ("2", "cloud"): "green",
    ("2", "edge_fallback"): "green",
}


def versions(folder: Path) -> list[Path]:
    """Two bundles of one model that agree on nothing."""
    second = {"edge_bias": (0.0, 40.0, 0.0), "full_bias": (0.0, 60.0, 0.0)}
    return [write_bundle(folder / "v1"), write_bundle(folder / "v2", version="2", **second)]  # type: ignore[arg-type]


def swaps(service: Service, result: str) -> float:
    return service.metrics().total("tandem_model_swaps_total", result=result)


def resident(*of: Service) -> float:
    """Bytes of memory, all together."""
    return sum(service.metrics().total("process_resident_memory_bytes") for service in of)


def test_swaps_under_load_fail_nothing_and_each_answer_is_of_one_version(
    services: Services, tmp_path: Path, note: Callable[..., None]
) -> None:
    folders = versions(tmp_path)
    current = point(tmp_path / "current", folders[0])
    cloud = services.cloud(current)
    edge = services.edge(current, cloud.ports[1])
    cloud.wait_ready()
    edge.wait_ready()
    digests: dict[str, str] = {}
    with Load(edge.ports[0], (picture(UNSURE),), rate=120, deadline_ms=1000, mode="cloud") as load:
        load.go_on(0.5)
        settled = 0.0
        for number in range(1, SWAPS + 1):
            point(current, folders[number % 2])
            edge.signal(signal.SIGHUP)
            status, told = reload(cloud)
            assert (status, told["result"]) == (200, "ok")
            eventually(lambda n=number: swaps(edge, "ok") == n, 10, "the edge has swapped")  # type: ignore[misc]
            load.go_on(0.1)
            if number == 3:
                settled = resident(edge, cloud)
        grown = resident(edge, cloud) - settled
    answers = load.answers
    assert {a.status for a in answers} == {200}
    for answer in answers:
        model = answer.body["model"]
        assert SAYS[model["version"], answer.source] == answer.label
        assert digests.setdefault(model["version"], model["digest"]) == model["digest"]
    # A busy machine may make the cloud late; what a swap could break would be called otherwise.
    assert not answers.reasons & {"cloud_error", "invalid_answer", "input_refused", "model_missing"}
    assert {a.body["model"]["version"] for a in answers.of("cloud")} == {"1", "2"}
    assert edge.metrics().by("tandem_model_info", "version") == {(str(SWAPS % 2 + 1),): 1}
    assert swaps(cloud, "ok") == SWAPS
    assert grown < GROWTH_BYTES
    note(answered=len(answers), mismatched=len(answers.of("edge_fallback")), grown_mb=grown / 2**20)


@pytest.mark.parametrize("kind", ["edge_node", "cloud_service"])
def test_what_is_refused_changes_nothing(services: Services, tmp_path: Path, kind: str) -> None:
    folders = versions(tmp_path)
    current = point(tmp_path / "current", folders[0])
    service = services.start(kind, kind, {"bundles": current}).wait_ready()
    status, told = reload(service)
    assert (status, told["result"]) == (200, "unchanged")

    file = "edge-int8.onnx" if kind == "edge_node" else "full.onnx"
    replace_file(folders[1], file, wedges.greedy(over=-1.0))
    point(current, folders[1])
    (folders[1] / file).write_bytes(b"something else")
    status, told = reload(service)
    assert status == 422
    assert f"{current}/{file}: 14 bytes, the manifest says" in told["error"]

    replace_file(folders[1], file, wedges.greedy(over=-1.0))
    status, told = reload(service)
    assert (status, told) == (
        422,
        {
            "error": f"{current}/{file}: ConstantOfShape asks for 4194304 MiB at once, "
            "the limit is 6144 MiB of memory; use a smaller model"
        },
    )
    assert swaps(service, "refused") == 2
    assert service.metrics().by("tandem_model_info", "version").keys() == {("1",)}
    assert service.log.count("reload refused, what serves goes on serving") == 2
    if kind == "edge_node":
        assert Device(service.ports[0]).predict(picture(SURE)).body["model"]["version"] == "1"


def test_what_may_be_done_on_the_management_port(services: Services, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colors")
    edge = services.edge(bundle, admin_token="open sesame").wait_ready()
    known = {"Authorization": "Bearer open sesame"}
    assert operate(edge, "GET", "/admin/escalation")[0] == 401
    assert operate(edge, "GET", "/admin/escalation", headers={"Authorization": "Bearer no"})[0] == 401
    assert operate(edge, "GET", "/admin/escalation", headers=known) == (200, {"enabled": True})
    assert operate(edge, "PUT", "/admin/escalation", {"enabled": "no"}, known)[0] == 400
    assert operate(edge, "PUT", "/admin/escalation", {"enabled": False}, known) == (200, {"enabled": False})
    assert operate(edge, "GET", "/admin/escalation", headers=known) == (200, {"enabled": False})
    assert operate(edge, "DELETE", "/admin/escalation", headers=known)[0] == 405
    assert operate(edge, "POST", "/admin/nothing", headers=known)[0] == 404
    assert operate(edge, "POST", "/admin/reload", headers=known | {"Origin": "http://example.com"})[0] == 403
    assert "PUT /admin/escalation by 127.0.0.1: 200" in edge.log
    assert "open sesame" not in edge.log
