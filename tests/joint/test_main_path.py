"""Nothing fails: each mode, each interface, and what both services count of it."""

import json
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from inference_core.tensors import from_response, get_parameters, to_request
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import (
    CUTS,
    SURE,
    SURE_BUT_WRONG,
    UNSURE,
    UNSURE_AND_RIGHT,
    Color,
    picture,
    pixels,
    write_bundle,
)
from tests.joint.device import Device
from tests.joint.scrape import Samples
from tests.joint.services import Service, Services, eventually, get_json

DEADLINE_MS = 300


@dataclass
class Pair:
    """An edge and a cloud that know each other."""

    edge: Service
    cloud: Service
    device: Device

    def counted(self) -> tuple[Samples, Samples]:
        """What edge and cloud have counted so far."""
        return self.edge.metrics(), self.cloud.metrics()


@pytest.fixture(scope="module")
def pair(module_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "colors")
    cloud = module_services.cloud(bundle)
    edge = module_services.edge(bundle, cloud.ports[1], deadline_ms=DEADLINE_MS)
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0])
    eventually(lambda: device.predict(picture(UNSURE)).source == "cloud", 5, "the edge reaches the cloud")
    return Pair(edge, cloud, device)


# What each image is at the edge and in the cloud is told by tests/bundles.py.
@pytest.mark.parametrize(
    ("color", "query", "source", "reason", "label"),
    [
        (SURE, {"mode": "edge"}, "edge", "mode", "red"),
        (UNSURE, {"mode": "edge"}, "edge", "mode", "red"),
        (SURE, {"mode": "cascade"}, "edge", "confident", "red"),
        (SURE_BUT_WRONG, {"mode": "cascade"}, "edge", "confident", "red"),
        (SURE_BUT_WRONG, {"mode": "cascade", "threshold": 0.99}, "cloud", "low_confidence", "blue"),
        (UNSURE, {"mode": "cascade", "threshold": 0.1}, "edge", "confident", "red"),
        (UNSURE, {"mode": "cascade"}, "cloud", "low_confidence", "blue"),
        (UNSURE_AND_RIGHT, {"mode": "cascade"}, "cloud", "low_confidence", "blue"),
        (UNSURE, {}, "cloud", "low_confidence", "blue"),
        (SURE, {"mode": "cloud"}, "cloud", "mode", "red"),
        (UNSURE, {"mode": "cloud"}, "cloud", "mode", "blue"),
        (UNSURE, {"mode": "split"}, "cloud", "mode", "blue"),
        (SURE, {"mode": "split", "cut": "pixels"}, "cloud", "mode", "red"),
        (UNSURE, {"mode": "split", "cut": "pixels"}, "cloud", "mode", "blue"),
        (UNSURE, {"mode": "split", "cut": "means"}, "cloud", "mode", "blue"),
    ],
)
def test_each_mode_is_answered_by_whom_it_says(
    pair: Pair, color: Color, query: dict[str, Any], source: str, reason: str, label: str
) -> None:
    answer = pair.device.predict(picture(color), deadline_ms=DEADLINE_MS, **query)
    assert (answer.status, answer.source, answer.reason, answer.label) == (200, source, reason, label)
    assert not answer.body["degraded"]
    assert (answer.body["bytes_up"] > 0) == (source == "cloud")
    edge_ran = query.get("mode", "cascade") in ("edge", "cascade")
    assert (answer.body["edge"] is not None) == edge_ran
    if edge_ran:
        assert answer.body["edge"]["label"] == ("blue" if color == UNSURE_AND_RIGHT else "red")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_image_format_goes_up_as_it_came(pair: Pair, form: str) -> None:
    image = picture(UNSURE, form, (200, 120))
    tensor_bytes = pixels(UNSURE).nbytes
    answer = pair.device.predict(image, kind=f"image/{form.lower()}", mode="cloud", deadline_ms=DEADLINE_MS)
    assert (answer.source, answer.label) == ("cloud", "blue")
    least = min(len(image), tensor_bytes)
    assert least < answer.body["bytes_up"] < least + 300


def test_split_says_what_cloud_mode_says(pair: Pair) -> None:
    ways = [{"mode": "cloud"}, *({"mode": "split", "cut": cut} for cut in CUTS)]
    for red in range(0, 256, 15):
        image = picture((red, 128, 120))
        answers = [pair.device.predict(image, deadline_ms=DEADLINE_MS, **way) for way in ways]
        assert {a.source for a in answers} == {"cloud"}
        assert len({a.label for a in answers}) == 1
        confidences = [a.body["prediction"]["confidence"] for a in answers]
        assert max(confidences) - min(confidences) < 1e-3


@pytest.mark.parametrize(
    ("color", "mode"), [(SURE, "cascade"), (UNSURE, "cascade"), (UNSURE, "edge"), (UNSURE, "split")]
)
def test_every_interface_gives_the_same_answer(pair: Pair, color: Color, mode: str) -> None:
    tensor = pixels(color)
    image = pair.device.predict(picture(color), mode=mode, deadline_ms=DEADLINE_MS)
    raw = pair.device.predict(
        tensor.tobytes(), kind="application/octet-stream", mode=mode, deadline_ms=DEADLINE_MS
    )
    form = b"".join(
        [
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n',
            picture(color),
            b"\r\n--x--\r\n",
        ]
    )
    multipart = pair.device.predict(
        form, kind="multipart/form-data; boundary=x", mode=mode, deadline_ms=DEADLINE_MS
    )
    for other in (raw, multipart):
        assert other.who == image.who
        assert other.label == image.label

    wants = {"tandem_mode": mode, "tandem_deadline_ms": DEADLINE_MS}
    json_logits, json_parameters = _rest_json(pair, tensor, wants)
    binary_logits, binary_parameters = _rest_binary(pair, tensor, wants)
    grpc_logits, grpc_parameters = _grpc(pair.edge.ports[1], "colors", tensor, wants)
    for parameters in (json_parameters, binary_parameters, grpc_parameters):
        assert (parameters["tandem_source"], parameters["tandem_reason"]) == image.who
        assert parameters["tandem_label"] == image.label
        assert parameters["tandem_confidence"] == pytest.approx(
            image.body["prediction"]["confidence"], abs=1e-5
        )
    np.testing.assert_array_equal(binary_logits, grpc_logits)
    np.testing.assert_allclose(json_logits, grpc_logits, rtol=1e-6)


def test_the_cloud_speaks_the_same_protocol_to_anyone(pair: Pair) -> None:
    port = pair.cloud.ports[1]
    full, parameters = _grpc(port, "colors", pixels(UNSURE, SURE), {})
    assert list(full.argmax(1)) == [2, 0]
    assert "tandem_bundle" in parameters
    image, _ = _grpc(port, "colors.image", np.array([picture(UNSURE)], dtype=object), {}, "image")
    np.testing.assert_allclose(image, full[:1], rtol=1e-5)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert stub.ServerReady(oip.ServerReadyRequest(), timeout=5).ready
        metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name="colors.tail.means"), timeout=5)
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
            ("features", "UINT8", [-1, 3])
        ]


def test_a_batch_is_decided_sample_by_sample(pair: Pair) -> None:
    before, cloud_before = pair.counted()
    logits, parameters = _grpc(
        pair.edge.ports[1],
        "colors",
        pixels(SURE, UNSURE, SURE_BUT_WRONG),
        {"tandem_deadline_ms": DEADLINE_MS},
    )
    after, cloud_after = pair.counted()
    assert parameters["tandem_source"] == "edge,cloud,edge"
    assert parameters["tandem_reason"] == "confident,low_confidence,confident"
    assert list(logits.argmax(1)) == [0, 2, 0]
    assert _rise("tandem_requests_total", before, after) == 3
    assert _rise("tandem_cloud_requests_total", cloud_before, cloud_after) == 1


def test_models_and_their_settings_are_listed(pair: Pair) -> None:
    port = pair.edge.ports[0]
    (listed,) = get_json(port, "/v1/models")["models"]
    assert listed == get_json(port, "/v1/models/colors")
    assert (listed["name"], listed["version"], listed["mode"]) == ("colors", "1", "cascade")
    assert [cut["name"] for cut in listed["cuts"]] == list(CUTS)
    assert listed["deadline_ms"] == DEADLINE_MS
    (served,) = [m for m in get_json(pair.cloud.ports[0], "/v1/models")["models"] if m["name"] == "colors"]
    assert served["digest"] == listed["digest"]
    assert get_json(port, "/v2/models/colors")["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}
    ]


def test_every_request_is_counted_once_on_both_sides(pair: Pair) -> None:
    before, cloud_before = pair.counted()
    asked: list[tuple[Color, dict[str, str]]] = [
        (SURE, {"mode": "edge"}),
        (SURE, {"mode": "cascade"}),
        (UNSURE, {"mode": "cascade"}),
        (UNSURE_AND_RIGHT, {"mode": "cascade"}),
        (UNSURE, {"mode": "cloud"}),
        (UNSURE, {"mode": "split", "cut": "means"}),
    ]
    answers = [
        pair.device.predict(picture(color), deadline_ms=DEADLINE_MS, **query) for color, query in asked * 5
    ]
    refused = pair.device.predict(b"not an image")
    after, cloud_after = pair.counted()

    assert {a.status for a in answers} == {200}
    assert refused.status == 400
    for who in {a.who for a in answers}:
        counted = _rise("tandem_requests_total", before, after, source=who[0], reason=who[1])
        assert counted == sum(a.who == who for a in answers), who
    up = 4 * 5
    rises = {
        "tandem_requests_total": 30,
        "tandem_request_duration_seconds_count": 30,
        "tandem_confidence_count": 20,
        "tandem_agreement_total": 10,
        "tandem_escalations_total": up,
        "tandem_fallbacks_total": 0,
        "tandem_refused_requests_total": 1,
    }
    assert {name: _rise(name, before, after) for name in rises} == rises
    assert _rise("tandem_agreement_total", before, after, agree="true") == 5
    assert _rise("tandem_escalations_total", before, after, route="features") == 5
    assert _rise("tandem_stage_duration_seconds_count", before, after, stage="cloud") == up

    calls = _rise("tandem_cloud_requests_total", cloud_before, cloud_after)
    assert calls == _rise("tandem_cloud_requests_total", cloud_before, cloud_after, outcome="ok") == up
    for name in ("grpc_server_msg_received_total", "grpc_server_msg_sent_total"):
        assert _rise(name, cloud_before, cloud_after, grpc_method="ModelStreamInfer") == up
    assert _rise("tandem_batch_size_sum", cloud_before, cloud_after) == up
    sent = sum(a.body["bytes_up"] for a in answers)
    assert _rise("tandem_escalation_bytes_total", before, after, direction="up") == sent
    assert _rise("tandem_cloud_bytes_total", cloud_before, cloud_after, direction="received") == sent
    received = _rise("tandem_escalation_bytes_total", before, after, direction="down")
    assert _rise("tandem_cloud_bytes_total", cloud_before, cloud_after, direction="sent") == received
    assert after.total("tandem_inflight_requests") == cloud_after.total("tandem_cloud_inflight_requests") == 0


def _rise(name: str, before: Samples, after: Samples, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)


def _rest_json(pair: Pair, tensor: Any, wants: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    request = {"name": "input", "datatype": "FP32", "shape": tensor.shape, "data": tensor.ravel().tolist()}
    body = json.dumps({"parameters": wants, "inputs": [request]}).encode()
    status, _, answer = pair.device.post("/v2/models/colors/infer", body, {})
    assert status == 200, answer
    content = json.loads(answer)
    (output,) = content["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"]), content["parameters"]


def _rest_binary(pair: Pair, tensor: Any, wants: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    request = {
        "name": "input",
        "datatype": "FP32",
        "shape": tensor.shape,
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    header = json.dumps({"parameters": wants | {"binary_data_output": True}, "inputs": [request]}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    status, headers, answer = pair.device.post("/v2/models/colors/infer", header + tensor.tobytes(), length)
    assert status == 200, answer
    end = int(headers["Inference-Header-Content-Length"])
    content = json.loads(answer[:end])
    (output,) = content["outputs"]
    return np.frombuffer(answer[end:], np.float32).reshape(output["shape"]), content["parameters"]


def _grpc(
    port: int, model: str, tensor: Any, wants: dict[str, Any], name: str = "input"
) -> tuple[Any, dict[str, Any]]:
    request = to_request(model, "", {name: tensor}, wants, "")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        response = stub.ModelInfer(request, timeout=5)
    return from_response(response)["logits"], get_parameters(response.parameters)
