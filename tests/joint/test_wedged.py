"""Model runs that do not end: they are ended, or done without, and everybody else is answered."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import wedges
from tests.bundles import SURE, UNSURE, picture, replace_file, write_bundle
from tests.joint.device import Device
from tests.joint.services import Service, Services, eventually

LIMIT_MS = 300
HANGS, ANSWERS = picture(SURE), picture(UNSURE)


def bundle(folder: Path, edge: bytes | None = None, full: bytes | None = None) -> Path:
    """A bundle whose models hang on what is `HANGS`."""
    write_bundle(folder, cuts=())
    for name, data in (("edge-int8.onnx", edge), ("full.onnx", full)):
        if data is not None:
            replace_file(folder, name, data)
    return folder


def happened(service: Service, what: str) -> float:
    return service.metrics().total(f"tandem_{what}_total", model="colors")


@pytest.mark.parametrize("inline_ms", [0, 100], ids=["on the pool", "on the loop"])
def test_an_endless_run_is_ended_and_its_engine_made_anew(
    services: Services, tmp_path: Path, inline_ms: int
) -> None:
    folder = bundle(tmp_path / "colors", edge=wedges.looping())
    edge = services.edge(folder, run_limit_ms=LIMIT_MS, inline_ms=inline_ms).wait_ready()
    device = Device(edge.ports[0])
    for count in (1, 2, 3):
        answer = device.predict(HANGS, deadline_ms=10_000)
        assert (answer.status, answer.seconds < 3) == (500, True)
        assert "error" in answer.body
        eventually(lambda: happened(edge, "runs_abandoned") == count, 5, "it is counted")  # noqa: B023
    eventually(lambda: happened(edge, "engine_restarts") == 1, 5, "the engine is made anew")
    eventually(lambda: device.predict(ANSWERS).status == 200, 5, "the engine is back")
    assert happened(edge, "runs_stuck") == 0
    assert edge.process.poll() is None


def test_a_run_that_heeds_nothing_keeps_neither_its_caller_nor_the_others_nor_the_end(
    services: Services, tmp_path: Path
) -> None:
    folder = bundle(tmp_path / "colors", edge=wedges.comparing())
    edge = services.edge(folder, run_limit_ms=LIMIT_MS, inline_ms=0, workers=1).wait_ready()
    device = Device(edge.ports[0])
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(device.predict, HANGS, deadline_ms=10_000)
        answer = hanging.result()
    assert (answer.status, answer.seconds < 5) == (500, True)
    eventually(lambda: happened(edge, "engine_restarts") == 1, 5, "the engine is made anew")
    assert happened(edge, "runs_stuck") == 1
    # The node that hangs is still at it, on a thread that nobody has any more.
    assert device.predict(ANSWERS, deadline_ms=2000).status == 200
    started = time.monotonic()
    assert edge.stop() == 0
    assert time.monotonic() - started < 3
    assert edge.log.rstrip().endswith("stopped")


def test_nobody_waits_for_a_wedged_run_past_the_deadline(services: Services, tmp_path: Path) -> None:
    """Long before the run is ended: with a cloud that can stand in, without one; and who comes behind."""
    folder = bundle(tmp_path / "colors", edge=wedges.looping())
    cloud = services.cloud(folder).wait_ready()
    changes: dict[str, Any] = {"run_limit_ms": 20_000, "inline_ms": 0, "workers": 1}
    edge = services.edge(folder, cloud.ports[1], **changes).wait_ready()
    alone = services.edge(folder, name="alone", **changes).wait_ready()
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")

    answer = Device(edge.ports[0]).predict(HANGS, deadline_ms=1000)
    assert (answer.status, *answer.who) == (200, "cloud", "edge_failed")
    assert answer.late_ms < 0
    answer = Device(alone.ports[0]).predict(HANGS, deadline_ms=1000)
    assert (answer.status, -100 < answer.late_ms < 100 + answer.stalled_ms) == (500, True)
    assert "its run has not ended, 10 times as long as usual" in alone.log
    for service in (edge, alone):  # the only worker is still at it
        answer = Device(service.ports[0]).predict(ANSWERS, deadline_ms=300)
        assert (answer.status, answer.late_ms < 100 + answer.stalled_ms) == (503, True)
        assert happened(service, "runs_abandoned") == 0


def test_the_cloud_answers_where_the_edge_model_fails_and_the_other_way_round(
    services: Services, tmp_path: Path
) -> None:
    full = wedges.looping(bias=(0.0, 0.0, 5.0))
    good = write_bundle(tmp_path / "good", cuts=())
    edge_hangs = bundle(tmp_path / "edge", edge=wedges.looping())
    cloud_hangs = bundle(tmp_path / "cloud", full=full)

    cloud = services.cloud(edge_hangs)
    edge = services.edge(edge_hangs, cloud.ports[1], run_limit_ms=LIMIT_MS)
    hung = services.cloud(cloud_hangs, name="hung", run_limit_ms=LIMIT_MS)
    asking = services.edge(cloud_hangs, hung.ports[1], name="asking")
    assert good.is_dir()
    for service in (cloud, edge, hung, asking):
        service.wait_ready()
    for service in (edge, asking):
        connected = lambda s=service: s.metrics().total("tandem_cloud_connected") == 1  # noqa: E731
        eventually(connected, 5, "the edge is connected")

    answer = Device(edge.ports[0]).predict(HANGS, deadline_ms=5000)
    assert (answer.status, *answer.who) == (200, "cloud", "edge_failed")
    assert answer.body["degraded"] is True
    assert Device(edge.ports[0]).predict(HANGS, deadline_ms=5000, mode="edge").status == 500

    answer = Device(asking.ports[0]).predict(HANGS, deadline_ms=5000, mode="cloud")
    assert (answer.status, *answer.who) == (200, "edge_fallback", "cloud_error")
    eventually(lambda: happened(hung, "runs_abandoned") == 1, 5, "it is counted")
    answer = Device(asking.ports[0]).predict(ANSWERS, deadline_ms=5000, mode="cloud")
    assert (answer.status, *answer.who) == (200, "cloud", "mode")


def test_a_second_signal_ends_at_once(services: Services, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "colors", edge=wedges.comparing())
    edge = services.edge(folder, inline_ms=0, shutdown_ms=20_000).wait_ready()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(Device(edge.ports[0]).post, "/v1/models/colors/predict", HANGS, {})
        eventually(lambda: edge.metrics().total("tandem_inflight_requests") == 1, 5, "a request hangs")
        edge.signal(signal.SIGTERM)
        eventually(lambda: "stopping: " in edge.log, 5, "the first signal is heeded")
        edge.signal(signal.SIGTERM)
        assert edge.wait(2) == 128 + signal.SIGTERM
        with pytest.raises(OSError, match=r"reset|closed"):
            hanging.result()
    assert "a second SIGTERM: ending at once" in edge.log
