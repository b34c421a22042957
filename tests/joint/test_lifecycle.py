"""Start, health and stop of both services, and what they say when they cannot start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from grpc_health.v1 import health_pb2

from tests import wedges
from tests.bundles import (
    SURE,
    UNSURE,
    edited,
    model_bytes,
    picture,
    pool_and_classify,
    replace_file,
    write_bundle,
)
from tests.joint.canary import CANARY
from tests.joint.device import Answer, Device, Load
from tests.joint.services import PREFIXES, ROOT, Service, Services, eventually, free_port, get

WORK = 200  # makes a run of the full model take some 50 ms
STOP_S = 5.0
STILL_S = 0.3
KINDS = ("edge_node", "cloud_service")
Breaking = Callable[[Path, str], None]
SERVING = health_pb2.HealthCheckResponse.SERVING


def health(service: Service, name: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{service.ports[1]}") as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return int(check(request, timeout=5).status)


def ready(service: Service) -> tuple[int, int]:
    """Status of `/healthz` and `/readyz`."""
    return get(service.ports[0], "/healthz")[0], get(service.ports[0], "/readyz")[0]


def test_readiness_does_not_depend_on_the_other_side(services: Services, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "colors")
    port = free_port()
    edge = services.edge(bundle, port).wait_ready()
    assert ready(edge) == (200, 200)
    assert health(edge) == health(edge, "inference.GRPCInferenceService") == SERVING
    assert get(edge.ports[0], "/v2/health/ready")[0] == 200
    eventually(lambda: f"cannot reach the cloud at 127.0.0.1:{port}" in edge.log, 5, "the log says so")
    cloud = services.cloud(bundle, grpc_port=port).wait_ready()
    assert health(cloud) == health(cloud, "inference.GRPCInferenceService") == SERVING
    connected = "tandem_cloud_connected"
    eventually(lambda: edge.metrics().total(connected) == 1, 3, "the edge has found the cloud")
    cloud.kill()
    eventually(lambda: edge.metrics().total(connected) == 0, 3, "the edge has lost the cloud")
    eventually(lambda: "lost the cloud at" in edge.log, 3, "the log says so")
    assert edge.log.count("connected to the cloud at") == edge.log.count("lost the cloud at") == 1
    assert ready(edge) == (200, 200)
    assert health(edge) == SERVING


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_is_alive_but_not_ready_while_it_loads(
    services: Services, tmp_path: Path, kind: str
) -> None:
    many = 12 if kind == "edge_node" else 2  # enough to be caught loading; the cloud also runs the slow model
    bundles = [write_bundle(tmp_path / f"b{n}", model=f"m{n}", full_work=WORK) for n in range(many)]
    service = services.start(kind, kind, {"bundles": ",".join(map(str, bundles))})
    service.ports  # noqa: B018 - waits until it listens
    assert ready(service) == (200, 503)
    assert health(service) == health_pb2.HealthCheckResponse.NOT_SERVING
    if kind == "edge_node":
        answer = Device(service.ports[0], "m0").predict(picture(SURE))
        assert (answer.status, answer.body) == (503, {"error": "the models are still loading"})
    service.wait_ready()
    assert ready(service) == (200, 200)
    assert health(service) == SERVING


@pytest.fixture
def slow_pair(services: Services, tmp_path: Path) -> tuple[Service, Service]:
    """An edge and a cloud that takes its time."""
    bundle = write_bundle(tmp_path / "colors", full_work=WORK)
    cloud = services.cloud(bundle)
    edge = services.edge(bundle, cloud.ports[1])
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0])
    eventually(
        lambda: device.predict(picture(UNSURE), deadline_ms=3000).source == "cloud",
        10,
        "the edge is connected",
    )
    return edge, cloud


@pytest.mark.parametrize("which", [0, 1], ids=KINDS)
def test_stopping_finishes_what_has_begun(
    slow_pair: tuple[Service, Service], note: Callable[..., None], which: int
) -> None:
    edge, cloud = slow_pair
    stopped = slow_pair[which]
    device = Device(edge.ports[0])

    def ask(_: int) -> Answer:
        return device.predict(picture(UNSURE), mode="cloud", deadline_ms=5000)

    def begun() -> bool:
        return cloud.metrics().total("tandem_cloud_inflight_requests") == len(askers)

    with ThreadPoolExecutor(8) as pool:
        askers = [pool.submit(ask, number) for number in range(8)]
        # Faster than the first run: all of them are in the cloud, waiting.
        try:
            eventually(begun, 2, "all requests are in flight")
        except pytest.fail.Exception:
            pytest.fail(f"they were answered too fast: {[a.result().body['timings_ms'] for a in askers]}")
        stopped.signal(signal.SIGTERM)
        started = time.monotonic()
        answers = [asker.result() for asker in askers]
        assert stopped.wait(STOP_S) == 0
    note(stopped_s=time.monotonic() - started)
    assert {(a.status, *a.who) for a in answers} == {(200, "cloud", "mode")}
    assert stopped.log.rstrip().endswith("stopped")


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_that_does_not_end_is_told_of_the_stop(
    services: Services, tmp_path: Path, kind: str
) -> None:
    bundle = write_bundle(tmp_path / "colors")
    start = services.edge if kind == "edge_node" else services.cloud
    service = start(bundle, shutdown_ms=1000).wait_ready()
    with socket.create_connection(("127.0.0.1", service.ports[0]), timeout=STOP_S) as sender:
        sender.sendall(b"POST /v2/models/colors/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        eventually(lambda: get(service.ports[0], "/healthz")[0] == 200, STOP_S, "it has read that")
        service.signal(signal.SIGTERM)
        with sender.makefile("rb") as answer:
            said = answer.read()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert said.endswith(b'{"error":"the service is stopping"}')
    assert service.wait(STOP_S) == 0


def test_an_edge_that_stops_under_load_breaks_no_answer_off(
    services: Services, tmp_path: Path, note: Callable[..., None]
) -> None:
    bundle = write_bundle(tmp_path / "colors")
    cloud = services.cloud(bundle)
    edge = services.edge(bundle, cloud.ports[1])
    cloud.wait_ready()
    edge.wait_ready()
    images = (picture(UNSURE), picture(SURE))
    with Load(edge.ports[0], images, rate=150, deadline_ms=200) as load:
        load.go_on(0.7)
        asked = time.monotonic()
        edge.signal(signal.SIGTERM)
        assert edge.wait(STOP_S) == 0
        took_s = time.monotonic() - asked
        load.go_on(0.2)
    known = asked - 0.05 - CANARY.stalled_s(asked - 1, asked)
    before = load.answers.sent_in(0, known)
    before.latest_ms()
    later = load.answers.sent_in(known)
    note(stopped_s=took_s, answered_while_stopping=sum(a.status == 200 for a in later))
    # Whoever got a connection and an answer got a whole one; the others were turned away at the door.
    assert {a.status for a in later} <= {200, 0}
    assert {a.error for a in later} <= {
        "",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "IncompleteReadError",
    }


def _flip_a_bit(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _use_external_data(folder: Path, name: str) -> None:
    model = onnx.load_from_string(model_bytes(pool_and_classify()))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="manifest.json")
    replace_file(folder, name, model.SerializeToString())


def _answer_differently(folder: Path, name: str) -> None:
    replace_file(folder, name, model_bytes(pool_and_classify(gain=21)))


def _set(**changes: Any) -> Breaking:
    def change(folder: Path, name: str) -> None:
        with edited(folder) as manifest:
            manifest |= changes

    return change


def _name_a_path(folder: Path, name: str) -> None:
    with edited(folder) as manifest:
        manifest["golden"]["file"] = "../golden.npz"


def _leave_the_manifest_out(folder: Path, name: str) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("breaking", "file", "rule"),
    [
        pytest.param(_flip_a_bit, "", "SHA-256", id="wrong digest"),
        pytest.param(_remove, "", "No such file", id="missing file"),
        pytest.param(_use_external_data, "", "keeps its data outside", id="external data"),
        pytest.param(_answer_differently, "", "golden", id="other outputs"),
        pytest.param(_set(model="../colors"), "manifest.json", "does not match", id="bad name"),
        pytest.param(_name_a_path, "manifest.json", "not a plain name", id="path"),
        pytest.param(_set(format=99), "manifest.json", "newer", id="newer format"),
        pytest.param(_leave_the_manifest_out, "manifest.json", "No such file", id="no manifest"),
    ],
)
def test_a_broken_bundle_is_refused_by_name_and_rule(
    services: Services, tmp_path: Path, breaking: Breaking, file: str, rule: str
) -> None:
    # The manifest is everyone's, so one service is enough to show what becomes of it.
    loaded = {"edge_node": "edge-int8.onnx"} | ({} if file else {"cloud_service": "full.onnx"})
    started = {}
    for kind, name in loaded.items():
        folder = write_bundle(tmp_path / kind)
        breaking(folder, name)
        started[kind] = services.start(kind, kind, {"bundles": folder})
    for kind, service in started.items():
        assert service.wait() == 1
        (line,) = [line for line in service.log.splitlines() if " ERROR " in line]
        assert "refusing to serve" in line
        assert (file or loaded[kind]) in line
        assert rule in line


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield int(holder.getsockname()[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_port_is_named(services: Services, tmp_path: Path, taken: int, kind: str) -> None:
    bundle = write_bundle(tmp_path / "colors")
    kinds = ("http_port", "grpc_port", "metrics_port")
    for service in [services.start(kind, port, {"bundles": bundle, port: taken}) for port in kinds]:
        assert service.wait() == 1
        (line,) = [line for line in service.log.splitlines() if " ERROR " in line]
        assert "cannot listen" in line
        assert str(taken) in line


def run(kind: str, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit status and everything that a short run says."""
    named = {PREFIXES[kind] + name.upper(): value for name, value in settings.items()}
    command = [sys.executable, "-m", kind, *arguments]
    done = subprocess.run(command, env=named, cwd=ROOT, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_while_it_loads_ends_it_without_waiting_for_the_load(
    services: Services, tmp_path: Path, kind: str
) -> None:
    folder = write_bundle(tmp_path / "colors")
    file = {"edge_node": "edge-int8.onnx", "cloud_service": "full.onnx"}[kind]
    replace_file(folder, file, wedges.looping(over=-1.0))
    service = services.start(kind, kind, {"bundles": folder})
    service.ports  # noqa: B018 - waits until it listens
    service.signal(signal.SIGTERM)
    assert service.wait(STOP_S) == 0
    assert "ready" not in service.log


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what is imported")
def test_an_interrupt_during_the_imports_leaves_no_stack_trace(
    services: Services, tmp_path: Path, kind: str
) -> None:
    service = services.start(kind, kind, {"bundles": write_bundle(tmp_path / "colors")})
    maps = Path(f"/proc/{service.process.pid}/maps")
    eventually(lambda: "uvloop" in maps.read_text(), 20, "the first library is loaded")
    service.signal(signal.SIGINT)
    assert service.wait(STOP_S) in (0, -signal.SIGINT)
    assert "Traceback" not in service.log


@pytest.mark.parametrize("kind", KINDS)
def test_not_ready_is_said_before_anything_is_refused(services: Services, tmp_path: Path, kind: str) -> None:
    service = services.start(kind, kind, {"bundles": write_bundle(tmp_path / "colors"), "drain_ms": 700})
    service.wait_ready()
    service.signal(signal.SIGTERM)
    eventually(lambda: ready(service) == (200, 503), 0.6, "it says so and still answers")
    assert health(service) == health_pb2.HealthCheckResponse.NOT_SERVING
    if kind == "edge_node":
        assert Device(service.ports[0]).predict(picture(SURE)).status == 200
    assert service.wait(STOP_S) == 0


def test_what_was_asked_before_the_signal_is_answered_though_nobody_had_read_it_yet(
    services: Services, tmp_path: Path
) -> None:
    edge = services.edge(write_bundle(tmp_path / "colors"), "").wait_ready()
    image = picture(SURE)
    request = (
        "POST /v1/models/colors/predict HTTP/1.1\r\nHost: edge\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    ).encode() + image
    with (
        socket.create_connection(("127.0.0.1", edge.ports[0]), STOP_S) as known,
        socket.socket() as fresh,
    ):
        known.sendall(request)
        assert known.recv(12) == b"HTTP/1.1 200"
        edge.signal(signal.SIGSTOP)  # as on a machine that stands still
        os.waitid(os.P_PID, edge.process.pid, os.WSTOPPED)
        fresh.settimeout(STOP_S)
        fresh.connect(("127.0.0.1", edge.ports[0]))
        for device in (known, fresh):
            device.sendall(request)
        stopped = time.monotonic()
        eventually(lambda: time.monotonic() - stopped > STILL_S, STOP_S, "all its timers are overdue")
        edge.signal(signal.SIGTERM)
        edge.signal(signal.SIGCONT)
        assert b"HTTP/1.1 200" in _all(known)
        assert _all(fresh).startswith(b"HTTP/1.1 200")
    assert edge.wait(STOP_S) == 0


def _all(device: socket.socket) -> bytes:
    return b"".join(iter(partial(device.recv, 1 << 16), b""))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_setting_is_named_with_its_value_and_limit(kind: str) -> None:
    status, text = run(kind, http_port="70000", shutdown_ms="soon")
    prefix = PREFIXES[kind]
    assert status == 2
    assert f"{prefix}HTTP_PORT: " in text
    assert "65535, got '70000'" in text
    assert f"{prefix}SHUTDOWN_MS: " in text
    assert "Traceback" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_help_lists_the_settings(kind: str) -> None:
    status, text = run(kind, "--help")
    assert status == 0
    for name in ("BUNDLES", "HOST", "HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "SHUTDOWN_MS", "LOG_LEVEL"):
        assert f"  {PREFIXES[kind]}{name} " in text
    assert "milliseconds" in text
    assert "models/digits" in text
