"""The cloud is there and answers, but not in a way that helps: busy, another bundle, or nonsense."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_core.tensors import to_response
from protos import open_inference_pb2 as oip
from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.joint.device import Answers, Device, Load
from tests.joint.fake_cloud import FakeCloud, Reply
from tests.joint.services import Service, Services, eventually

DEADLINE_MS = 250
WORK = 150  # makes a run of the full model take tens of milliseconds
NEVER_OPEN = 1000  # failures that open the breaker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors")


def test_a_busy_cloud_is_helped_by_the_edge(
    services: Services, tmp_path: Path, note: Callable[..., None]
) -> None:
    bundle = write_bundle(tmp_path / "colors", full_work=WORK)
    cloud = services.cloud(bundle, max_queue=1, max_batch_size=1)
    edge = services.edge(bundle, cloud.ports[1])
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0])
    patient: dict[str, Any] = {"mode": "cloud", "deadline_ms": 2000}
    eventually(
        lambda: device.predict(picture(UNSURE), **patient).source == "cloud", 5, "the edge is connected"
    )
    runs = [device.predict(picture(UNSURE), **patient).body["timings_ms"]["cloud_infer"] for _ in range(5)]
    run_s = min(runs) / 1000
    before = cloud.metrics()
    with Load(edge.ports[0], [picture(UNSURE)], rate=3 / run_s, deadline_ms=DEADLINE_MS) as load:
        load.go_on(2.0)
    answers = load.answers
    note(latest_after_deadline_ms=answers.latest_ms(), who=str(dict(answers.who)))
    fallbacks = answers.of("edge_fallback")
    assert "overloaded" in fallbacks.reasons
    assert fallbacks.reasons <= {"overloaded", "throttled", "breaker_open", "deadline"}
    assert answers.of("cloud"), "some of them had room"
    assert all(a.body["degraded"] for a in fallbacks)
    refused = cloud.metrics().total("tandem_cloud_requests_total", outcome="resource_exhausted")
    assert refused - before.total("tandem_cloud_requests_total", outcome="resource_exhausted") == sum(
        a.reason == "overloaded" for a in fallbacks
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "2"}, "version_mismatch"),
        ({"threshold": 0.7}, "version_mismatch"),  # the same version of another bundle
        ({"model": "shapes"}, "model_missing"),
    ],
    ids=["version", "digest", "model"],
)
def test_a_cloud_with_another_bundle_is_not_believed(
    services: Services, bundle: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    cloud = services.cloud(write_bundle(tmp_path / "other", **changes))
    edge = services.edge(bundle, cloud.ports[1])
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0])
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")
    for query in ({"mode": "cascade"}, {"mode": "cloud"}, {"mode": "split", "cut": "means"}):
        for _ in range(7):  # more than open the breaker: this says nothing about the cloud's health
            answer = device.predict(picture(UNSURE), **query)
            assert (answer.status, answer.who, answer.label) == (200, ("edge_fallback", reason), "red")
            assert answer.body["degraded"]
            Answers([answer]).latest_ms()
    assert device.predict(picture(SURE)).who == ("edge", "confident")
    assert edge.metrics().total("tandem_fallbacks_total", reason=reason) == 21


def test_an_image_that_the_cloud_refuses_is_answered_here(services: Services, bundle: Path) -> None:
    cloud = services.cloud(bundle, max_pixels=100)
    edge = services.edge(bundle, cloud.ports[1])
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0])
    eventually(lambda: device.predict(picture(UNSURE)).source == "cloud", 5, "the edge is connected")
    image = picture(UNSURE, size=(20, 20))
    assert len(image) < 768, "else the tensor would go up"
    answer = device.predict(image)
    assert (answer.status, answer.who) == (200, ("edge_fallback", "too_large"))
    assert device.predict(picture(UNSURE)).source == "cloud"


@dataclass
class Fooled:
    """An edge and what answers its escalations."""

    edge: Service
    device: Device
    cloud: FakeCloud


def _reply(
    logits: Any = ((0.0, 9.0, 0.0),),
    name: str = "logits",
    version: str = "",
    edit: Callable[[Any], None] | None = None,
) -> Reply:
    def reply(request: oip.ModelInferRequest) -> bytes:
        outputs = {name: np.asarray(logits, None if isinstance(logits, np.ndarray) else np.float32)}
        answer = to_response(request.model_name, version or request.model_version, outputs, {}, request.id)
        if edit is not None:
            edit(answer)
        return answer.SerializeToString()

    return reply


@pytest.fixture(scope="module")
def fooled(module_services: Services, bundle: Path) -> Iterator[Fooled]:
    with FakeCloud(_reply()) as cloud:
        edge = module_services.edge(bundle, cloud.port, breaker_failures=NEVER_OPEN).wait_ready()
        device = Device(edge.ports[0])
        eventually(lambda: device.predict(picture(UNSURE)).source == "cloud", 5, "the edge is connected")
        yield Fooled(edge, device, cloud)


def test_any_server_of_the_protocol_can_be_the_cloud(fooled: Fooled) -> None:
    fooled.cloud.reply = _reply()
    answer = fooled.device.predict(picture(UNSURE))
    assert (answer.who, answer.label) == (("cloud", "low_confidence"), "green")


def _garbage(request: oip.ModelInferRequest) -> bytes:
    return b"\xff" * 40


def _raise(request: oip.ModelInferRequest) -> bytes:
    raise RuntimeError("the fake cloud fails on purpose")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(_reply([[float("nan"), 0, 0]]), "invalid_answer", id="NaN"),
        pytest.param(_reply([[0, float("-inf"), 0]]), "invalid_answer", id="infinity"),
        pytest.param(_reply([[1, 2]]), "invalid_answer", id="too few classes"),
        pytest.param(_reply([[1, 2, 3], [4, 5, 6]]), "invalid_answer", id="too many rows"),
        pytest.param(_reply([1, 2, 3]), "invalid_answer", id="no batch axis"),
        pytest.param(_reply(np.array([[1.0, 2.0, 3.0]])), "invalid_answer", id="double precision"),
        pytest.param(_reply(name="scores"), "invalid_answer", id="another output"),
        pytest.param(_reply(edit=lambda a: a.ClearField("outputs")), "invalid_answer", id="no output"),
        pytest.param(
            _reply(edit=lambda a: a.raw_output_contents.__setitem__(0, b"abc")),
            "invalid_answer",
            id="cut tensor",
        ),
        pytest.param(
            _reply(edit=lambda a: a.outputs[0].shape.__setitem__(0, 2**40)), "invalid_answer", id="huge shape"
        ),
        pytest.param(
            _reply(edit=lambda a: setattr(a.outputs[0], "datatype", "FP31")),
            "invalid_answer",
            id="no datatype",
        ),
        pytest.param(_reply(version="7"), "version_mismatch", id="another version"),
        pytest.param(lambda _: b"", "invalid_answer", id="empty message"),
        pytest.param(_garbage, "invalid_answer", id="no protobuf"),
        pytest.param(lambda _: bytes(20 << 20), "too_large", id="20 MB"),
        pytest.param(_raise, "cloud_error", id="exception"),
    ],
)
def test_nonsense_is_not_passed_on(fooled: Fooled, reply: Reply, reason: str) -> None:
    fooled.cloud.reply = reply
    for mode in ("cascade", "cloud", "split"):
        answer = fooled.device.predict(picture(UNSURE), mode=mode)
        assert answer.status == 200, answer.body
        assert (answer.source, answer.label) == ("edge_fallback", "red")
        assert answer.reason == reason
        assert answer.body["degraded"]
        Answers([answer]).latest_ms()
    fooled.cloud.reply = _reply()
    assert fooled.device.predict(picture(UNSURE)).source == "cloud"


def test_nonsense_opens_the_breaker(services: Services, bundle: Path) -> None:
    with FakeCloud(_reply([[float("nan"), 0, 0]])) as cloud:
        edge = services.edge(bundle, cloud.port, breaker_failures=3).wait_ready()
        eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")
        device = Device(edge.ports[0])
        reasons = [device.predict(picture(UNSURE)).reason for _ in range(5)]
        assert reasons == ["invalid_answer"] * 3 + ["breaker_open"] * 2
        assert len(cloud.time_left_s) == 3
        cloud.reply = _reply()
        eventually(lambda: device.predict(picture(UNSURE)).source == "cloud", 2, "the cloud is tried again")


def test_the_remaining_time_goes_up_as_the_deadline(services: Services, bundle: Path) -> None:
    with FakeCloud(_reply()) as cloud:
        edge = services.edge(bundle, cloud.port).wait_ready()
        device = Device(edge.ports[0])
        eventually(lambda: device.predict(picture(UNSURE)).source == "cloud", 5, "the edge is connected")
        cloud.time_left_s.clear()
        for mode in ("cascade", "cloud", "split"):
            device.predict(picture(UNSURE), mode=mode, deadline_ms=900)
    assert len(cloud.time_left_s) == 3
    # gRPC rounds up to whole milliseconds; from a second on it would be to tens of them.
    assert all(0.7 < seconds <= 0.901 for seconds in cloud.time_left_s), cloud.time_left_s
