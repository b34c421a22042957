"""The Open Inference Protocol over REST: tensors as JSON and as bytes, compressed or not, good and bad."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from starlette.testclient import TestClient

from inference_core.catalogue import EXTENSIONS
from inference_core.errors import CloudUnreachable
from inference_core.unserved import PATHS
from tests.bundles import SURE, UNSURE, picture, pixels, write_bundle
from tests.edge_node.node import CloudSimulator, Node, node

URL = "/v2/models/colors/infer"
LENGTH = "Inference-Header-Content-Length"
RED, BLUE = 0, 2


def tensor(array: NDArray[Any], **changes: Any) -> dict[str, Any]:
    """An input with its data as a flat list."""
    return {
        "name": "input",
        "shape": list(array.shape),
        "datatype": "FP32",
        "data": array.ravel().tolist(),
    } | changes


def message(array: NDArray[Any], **changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(array)]} | changes


def send(client: TestClient, content: Any, url: str = URL, **headers: str) -> Any:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return client.post(url, content=data, headers=named)


def send_binary(client: TestClient, header: dict[str, Any], *chunks: bytes, **headers: str) -> Any:
    data = json.dumps(header).encode()
    return send(client, b"".join([data, *chunks]), **{LENGTH.replace("-", "_"): str(len(data))}, **headers)


def binary_message(array: NDArray[Any], size: Any = None, **changes: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": array.nbytes if size is None else size}
    return {"inputs": [tensor(array, parameters=parameters) | {"data": None}]} | changes


def winners(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return [int(row.argmax()) for row in np.array(output["data"]).reshape(output["shape"])]


def test_server_is_live_ready_and_described(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    ready = client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"live": True, "ready": True})
    described = client.get("/v2").json()
    assert described == {
        "name": "tandem-edge",
        "version": "1.2.3",
        "extensions": list(EXTENSIONS),
    }


@pytest.mark.parametrize("url", ["/v2/models/colors", "/v2/models/colors/versions/1"])
def test_model_metadata(client: TestClient, url: str) -> None:
    assert client.get(url).json() == {
        "name": "colors",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize(
    ("path", "ready"),
    [("colors", True), ("colors/versions/1", True), ("colors", False), ("colors/versions/1", False)],
)
def test_model_ready(edge: Node, client: TestClient, path: str, ready: bool) -> None:
    edge.slots.ready = ready
    answer = client.get(f"/v2/models/{path}/ready")
    assert answer.status_code == (200 if ready else 503)
    assert answer.json() == {"name": "colors", "ready": ready, "live": ready}


@pytest.mark.parametrize("path", ["colors", "colors/versions/1"])
def test_model_config(client: TestClient, path: str) -> None:
    assert client.get(f"/v2/models/{path}/config").json() == {
        "name": "colors",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 64,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}],
        "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 0},
    }


def test_statistics_count_each_request_once(client: TestClient) -> None:
    assert winners(send(client, message(pixels(SURE, SURE)))) == [RED, RED]
    assert send(client, message(pixels(SURE), outputs=[{"name": "x"}])).status_code == 400
    assert send(client, message(pixels(SURE), parameters={"tandem_mode": "x"})).status_code == 400
    assert send(client, picture(SURE), "/v1/models/colors/predict").status_code == 200
    for url in ("/v2/models/stats", "/v2/models/colors/stats", "/v2/models/colors/versions/1/stats"):
        (found,) = client.get(url).json()["model_stats"]
        assert (found["name"], found["version"], found["inference_count"]) == ("colors", "1", 3)
        stages = found["inference_stats"]
        assert (stages["success"]["count"], stages["fail"]["count"]) == (2, 2)
        assert stages["success"]["ns"] >= stages["compute_infer"]["ns"] > 0
        assert found["execution_count"] == sum(b["compute_infer"]["count"] for b in found["batch_stats"]) > 0
        assert sum(b["batch_size"] * b["compute_infer"]["count"] for b in found["batch_stats"]) == 3


@pytest.mark.parametrize(("body", "ready"), [(b"", True), (b'{"ready": true}', True), (b"{}", False)])
def test_repository_index(edge: Node, client: TestClient, body: bytes, ready: bool) -> None:
    edge.slots.ready = ready
    (found,) = client.post("/v2/repository/index", content=body).json()
    assert (found["name"], found["version"], found["state"]) == (
        *("colors", "1", "READY" if ready else "UNAVAILABLE"),
    )


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b'{"ready": 1}', 400), (b" " * 5000, 413)])
def test_bad_question_about_the_repository(client: TestClient, body: bytes, status: int) -> None:
    answer = client.post("/v2/repository/index", content=body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_best_classes(client: TestClient) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    answer = send(client, message(pixels(SURE, UNSURE), outputs=wanted)).json()
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [text.split(":")[1:] for text in output["data"][::2]] == [["0", "red"], ["2", "blue"]]


@pytest.mark.parametrize("question", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize("url", ["/v2/models/shapes", "/v2/models/colors/versions/2"])
def test_what_is_asked_of_a_model_that_is_not_there(
    edge: Node, client: TestClient, url: str, question: str
) -> None:
    answer = client.get(url + question)
    assert answer.status_code == 404
    assert "is not served here" in answer.json()["error"]
    assert edge.series("tandem_refused_requests_total") == {("open_inference", "404"): 1}


def test_flat_data(edge: Node, client: TestClient) -> None:
    answer = send(client, message(pixels(SURE), id="id-7"))
    assert winners(answer) == [RED]
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("colors", "1", "id-7")
    (output,) = body["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("logits", [1, 3], "FP32")
    assert output["data"] == pytest.approx([20.0, 0.0, 0.0], abs=0.1)
    assert edge.series("tandem_requests_total") == {("colors", "confident", "edge"): 1}


def test_nested_data(client: TestClient) -> None:
    nested = tensor(pixels(SURE), data=pixels(SURE).tolist())
    assert winners(send(client, {"inputs": [nested]})) == [RED]


def test_outcome_is_told_in_parameters(client: TestClient, cloud: CloudSimulator) -> None:
    told = send(client, message(pixels(UNSURE))).json()["parameters"]
    assert told.keys() == {
        f"tandem_{name}"
        for name in (
            *("source", "reason", "degraded", "label", "confidence", "threshold", "bytes_up", "total_ms"),
        )
    }
    assert (told["tandem_source"], told["tandem_reason"], told["tandem_degraded"]) == (
        *("cloud", "low_confidence", False),
    )
    assert (told["tandem_label"], told["tandem_threshold"]) == ("blue", 0.8)
    cloud.absent = CloudUnreachable("gone")
    told = send(client, message(pixels(UNSURE))).json()["parameters"]
    assert (told["tandem_source"], told["tandem_degraded"], told["tandem_label"]) == (
        *("edge_fallback", True, "red"),
    )


def test_samples_of_a_batch_are_decided_each_for_itself(edge: Node, client: TestClient) -> None:
    answer = send(client, message(pixels(SURE, UNSURE, SURE)))
    assert winners(answer) == [RED, BLUE, RED]
    told = answer.json()["parameters"]
    assert told["tandem_source"] == "edge,cloud,edge"
    assert told["tandem_reason"] == "confident,low_confidence,confident"
    assert told["tandem_degraded"] == "false,false,false"
    assert told["tandem_label"] == "red,blue,red"
    assert told["tandem_threshold"] == "0.8,0.8,0.8"
    assert edge.series("tandem_requests_total") == {
        ("colors", "confident", "edge"): 2,
        ("colors", "low_confidence", "cloud"): 1,
    }


@pytest.mark.parametrize(
    ("parameters", "source"),
    [
        ({"tandem_mode": "edge"}, "edge"),
        ({"tandem_mode": "cloud"}, "cloud"),
        ({"tandem_mode": "split", "tandem_cut": "means"}, "cloud"),
        ({"tandem_threshold": 0.0}, "edge"),
        ({"tandem_threshold": 0}, "edge"),
        ({"tandem_deadline_ms": 60000}, "cloud"),
        ({"sequence_id": 7, "priority": "high", "other": True}, "cloud"),
    ],
)
def test_parameters(client: TestClient, parameters: dict[str, Any], source: str) -> None:
    answer = send(client, message(pixels(UNSURE), parameters=parameters))
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["tandem_source"] == source


def test_version_in_the_path(client: TestClient) -> None:
    assert winners(send(client, message(pixels(SURE)), "/v2/models/colors/versions/1/infer")) == [RED]
    answer = send(client, message(pixels(SURE)), "/v2/models/colors/versions/2/infer")
    assert answer.status_code == 404
    assert "version: '2' of model 'colors'" in answer.json()["error"]


def test_bytes_in(client: TestClient) -> None:
    array = pixels(SURE, UNSURE)
    answer = send_binary(client, binary_message(array), array.tobytes())
    assert answer.headers["content-type"] == "application/json"
    assert winners(answer) == [RED, BLUE]


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]},
        {
            "parameters": {"binary_data_output": False},
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        },
        {"parameters": {"binary_data_output": True}, "outputs": [{"name": "logits"}]},
    ],
)
def test_bytes_out(client: TestClient, changes: dict[str, Any]) -> None:
    answer = send(client, message(pixels(SURE, UNSURE), **changes))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    end = int(answer.headers[LENGTH])
    header = json.loads(answer.content[:end])
    (output,) = header["outputs"]
    assert "data" not in output
    assert output["parameters"] == {"binary_data_size": 24}
    logits = np.frombuffer(answer.content[end:], "<f4").reshape(output["shape"])
    assert logits.argmax(axis=1).tolist() == [RED, BLUE]


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": [{"name": "logits"}]},
        {
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
        },
    ],
)
def test_output_asked_for_as_json(client: TestClient, changes: dict[str, Any]) -> None:
    assert winners(send(client, message(pixels(SURE), **changes))) == [RED]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress), ("identity", bytes)],
)
def test_compressed_bodies(client: TestClient, encoding: str, pack: Any) -> None:
    plain = json.dumps(message(pixels(SURE))).encode()
    assert winners(send(client, pack(plain), Content_Encoding=encoding)) == [RED]
    array = pixels(UNSURE)
    header = json.dumps(binary_message(array)).encode()
    answer = client.post(
        URL,
        content=pack(header + array.tobytes()),
        headers={LENGTH: str(len(header)), "Content-Encoding": encoding},
    )
    assert winners(answer) == [BLUE]


def test_no_content_type_and_any_content_type_are_fine(client: TestClient) -> None:
    for kind in ("application/json", "application/octet-stream", "text/plain", "nonsense"):
        assert winners(send(client, message(pixels(SURE)), Content_Type=kind)) == [RED]


def test_infinite_logits_become_null_and_not_an_error(tmp_path: Path) -> None:
    # What the edge says may be as large as float32 goes; JSON has no word for more.
    with node(write_bundle(tmp_path / "steep", gain=1e38)) as edge, TestClient(edge.app()) as client:
        answer = send(client, message(pixels(SURE), parameters={"tandem_mode": "edge"}))
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        assert output["data"][0] > 1e37


ARRAY = pixels(SURE)
BAD_MESSAGES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "body: not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "body: not JSON"),
    "NaN in JSON": (b'{"inputs": NaN}', "body: not JSON"),
    "deep JSON": (b"[" * 100_000, "body: not JSON"),
    "a list": ([], "body: must be a JSON object"),
    "a number": (3, "body: must be a JSON object"),
    "null": (None, "body: must be a JSON object"),
    "no inputs": ({}, "inputs: must be a list of objects"),
    "inputs are no list": ({"inputs": {}}, "inputs: must be a list of objects"),
    "inputs are empty": ({"inputs": []}, "input 'input' is missing"),
    "input without a shape": (
        {"inputs": [{"name": "input", "datatype": "FP32", "data": []}]},
        "inputs.0.shape: must be a list of whole numbers, got nothing",
    ),
    "id of numbers": (message(ARRAY, id=7), "id: must be a string, got 7"),
    "unknown input": ({"inputs": [tensor(ARRAY, name="x")]}, "unknown input 'x'"),
    "input twice": ({"inputs": [tensor(ARRAY)] * 2}, "input 'input' is given twice"),
    "unknown datatype": ({"inputs": [tensor(ARRAY, datatype="FP8")]}, "datatype 'FP8' is not one of BOOL"),
    "other datatype": ({"inputs": [tensor(ARRAY, datatype="FP64")]}, "datatype must be FP32"),
    "half": ({"inputs": [tensor(ARRAY, datatype="FP16")]}, "FP16 has no JSON form"),
    "strings": ({"inputs": [tensor(ARRAY, data=["a"] * 192)]}, "data does not fit datatype FP32"),
    "null data": ({"inputs": [tensor(ARRAY, data=None)]}, "data must be a list"),
    "too few values": ({"inputs": [tensor(ARRAY, data=[1.0])]}, "is 192 elements, got 1"),
    "ragged": ({"inputs": [tensor(ARRAY, data=[[1.0], [1.0, 2.0]])]}, "ragged"),
    "out of range": ({"inputs": [tensor(ARRAY, data=[1e300] * 192)]}, "out of the range of FP32"),
    "negative shape": ({"inputs": [tensor(ARRAY, shape=[-1, 3, 8, 8])]}, "whole numbers >= 0"),
    "giant shape": ({"inputs": [tensor(ARRAY, shape=[1 << 40, 1 << 40])]}, "elements"),
    "many dimensions": ({"inputs": [tensor(ARRAY, shape=[1] * 100)]}, "100 dimensions, the limit is 16"),
    "other shape": ({"inputs": [tensor(ARRAY, shape=[1, 192])]}, "shape must be [-1, 3, 8, 8], got [1, 192]"),
    "no samples": ({"inputs": [tensor(pixels())]}, "0 samples in one request, the limits are 1 and 64"),
    "too many samples": (message(pixels(*[SURE] * 65)), "65 samples in one request, the limits are 1 and 64"),
    "shared memory": (
        {"inputs": [tensor(ARRAY, parameters={"shared_memory_region": "mine"})]},
        "shared memory is not served here",
    ),
    "bad class count": (
        message(ARRAY, outputs=[{"name": "logits", "parameters": {"classification": 0}}]),
        "parameter classification must be a whole number >= 1, got 0",
    ),
    "unknown output": (message(ARRAY, outputs=[{"name": "x"}]), "output 'x': the model has 'logits' only"),
    "nested parameter": (message(ARRAY, parameters={"a": {}}), "parameters.a"),
    "unknown mode": (
        message(ARRAY, parameters={"tandem_mode": "fast"}),
        "parameter tandem_mode: Input should be 'edge'",
    ),
    "mode and cut": (
        message(ARRAY, parameters={"tandem_mode": "auto", "tandem_cut": "means"}),
        "only mode 'split' takes a cut",
    ),
    "unknown cut": (
        message(ARRAY, parameters={"tandem_mode": "split", "tandem_cut": "x"}),
        "cut: 'x' is not one of pixels, means",
    ),
    "deadline 0": (
        message(ARRAY, parameters={"tandem_deadline_ms": 0}),
        "parameter tandem_deadline_ms: Input should be",
    ),
    "threshold 2": (
        message(ARRAY, parameters={"tandem_threshold": 2}),
        "parameter tandem_threshold: Input should be",
    ),
    "unknown tandem parameter": (
        message(ARRAY, parameters={"tandem_treshold": 1}),
        "parameter tandem_treshold: Extra inputs are not permitted",
    ),
    "binary data without bytes": (binary_message(ARRAY), "binary_data_size must be 0 to 0, got 768"),
}


def is_refused(edge: Node, client: TestClient, answer: Any, status: int, text: str) -> bool:
    """The answer is this error, it was counted once, and a good request is answered after it."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert text in answer.json()["error"]
    assert edge.series("tandem_refused_requests_total") == {("open_inference", str(status)): 1}
    assert edge.series("tandem_requests_total") == {}
    assert edge.value("tandem_inflight_requests") == 0
    return winners(send(client, message(pixels(SURE)))) == [RED]


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_bad_message(edge: Node, client: TestClient, case: str) -> None:
    content, text = BAD_MESSAGES[case]
    assert is_refused(edge, client, send(client, content), 400, text)


@pytest.mark.parametrize(
    "length", ["-1", "x", "", "1e3", "1_0", "99999999", "9" * 5000, "\u00b2".encode("latin-1")]
)
def test_bad_header_length(edge: Node, client: TestClient, length: str | bytes) -> None:
    value = length.encode() if isinstance(length, str) else length
    answer = client.post(URL, content=b"{}", headers=[(LENGTH.encode(), value)])
    assert is_refused(edge, client, answer, 400, "Inference-Header-Content-Length: must be 0 to 2")


@pytest.mark.parametrize("size", [-1, 767, 769, 1 << 70, "768", 768.0, True])
def test_bad_binary_size(edge: Node, client: TestClient, size: Any) -> None:
    answer = send_binary(client, binary_message(ARRAY, size), ARRAY.tobytes())
    assert is_refused(edge, client, answer, 400, "")


def test_header_length_that_cuts_the_header(edge: Node, client: TestClient) -> None:
    data = json.dumps(message(ARRAY)).encode()
    answer = client.post(URL, content=data, headers={LENGTH: str(len(data) - 1)})
    assert is_refused(edge, client, answer, 400, "body: not JSON")


def test_header_length_zero(edge: Node, client: TestClient) -> None:
    answer = client.post(URL, content=b"{}", headers={LENGTH: "0"})
    assert is_refused(edge, client, answer, 400, "body: not JSON")


def test_bytes_behind_the_last_input(edge: Node, client: TestClient) -> None:
    answer = send_binary(client, binary_message(ARRAY), ARRAY.tobytes(), b"more")
    assert is_refused(edge, client, answer, 400, "body: 4 bytes after the last binary input")


def test_binary_nan(edge: Node, client: TestClient) -> None:
    array = ARRAY * np.float32("nan")
    answer = send_binary(client, binary_message(array), array.tobytes())
    assert is_refused(edge, client, answer, 400, "input 'input': holds a NaN or an infinity")


@pytest.mark.parametrize(
    ("body", "encoding", "status", "text"),
    [
        (b"", "", 400, "body: is empty"),
        (b"hello", "gzip", 400, "body: is not gzip"),
        (b"hello", "deflate", 400, "body: is not deflate"),
        (gzip.compress(b"{}")[:-4], "gzip", 400, "body: its gzip ends too early"),
        (gzip.compress(b""), "gzip", 400, "body: not JSON"),
        (b"{}", "br", 400, "Content-Encoding: 'br' is not one of gzip, deflate, identity"),
        (b"{}", "gzip, gzip", 400, "Content-Encoding: 'gzip, gzip' is not one of"),
        (
            gzip.compress(b" " * (17 << 20)),
            "gzip",
            413,
            "body: over the limit of 16777216 bytes when decompressed",
        ),
        (zlib.compress(b" " * (17 << 20)), "deflate", 413, "body: over the limit of 16777216 bytes"),
    ],
)
def test_bad_encoding(
    edge: Node, client: TestClient, body: bytes, encoding: str, status: int, text: str
) -> None:
    assert is_refused(edge, client, send(client, body, Content_Encoding=encoding), status, text)


def test_body_of_exactly_the_limit_when_decompressed(colors: Path) -> None:
    plain = json.dumps(message(pixels(SURE))).encode()
    with node(colors, max_body_bytes=len(plain)) as edge, TestClient(edge.app()) as client:
        assert winners(send(client, gzip.compress(plain), Content_Encoding="gzip")) == [RED]
        assert winners(send(client, plain)) == [RED]
        answer = send(client, plain + b" ")
        assert (answer.status_code, answer.json()["error"]) == (
            413,
            f"body: {len(plain) + 1} bytes, the limit is {len(plain)}",
        )
        assert send(client, gzip.compress(plain + b" "), Content_Encoding="gzip").status_code == 413


def test_unknown_model(edge: Node, client: TestClient) -> None:
    answer = send(client, message(ARRAY), "/v2/models/shapes/infer")
    assert is_refused(edge, client, answer, 404, "'shapes' is not served here, only colors")


def test_what_the_protocol_does_not_have(edge: Node, client: TestClient) -> None:
    for method, url, status in (
        ("GET", URL, 405),
        ("POST", "/v2/repository", 404),
        ("GET", "/v2/repository/index", 405),
    ):
        answer = client.request(method, url)
        assert answer.status_code == status
        assert answer.json().keys() == {"error"}
    for path, words in PATHS:
        url = f"/v2{path}".replace("{rest:path}", "colors/load").replace("{model}", "colors")
        for method in ("GET", "POST"):
            answer = client.request(method, url)
            assert (answer.status_code, words in answer.json()["error"]) == (404, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("input") | JSON,
        "shape": st.just([1, 3, 8, 8]) | st.lists(st.integers(-2, 1 << 65), max_size=5) | JSON,
        "datatype": st.sampled_from(["FP32", "BYTES", "BOOL", "INT64", "BF16"]) | JSON,
        "data": st.just(ARRAY.ravel().tolist()) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), JSON, max_size=2) | JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"inputs": st.lists(FIELDS, max_size=2) | JSON},
    optional={
        "id": st.text(max_size=8) | JSON,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.just("logits") | st.text(max_size=4)}), max_size=2
        )
        | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["tandem_mode", "tandem_threshold", "tandem_deadline_ms", "binary_data_output"]),
            JSON,
        )
        | JSON,
    },
)


@pytest.fixture(scope="module")
def fuzzed(colors: Path) -> Iterator[TestClient]:
    with node(colors, cloud=CloudSimulator(colors)) as edge, TestClient(edge.app()) as client:
        yield client


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=MESSAGES.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda v: json.dumps(v).encode()),
    tail=st.binary(max_size=16),
    length=st.none() | st.integers(-2, 400).map(str) | st.just("9" * 4400),
    encoding=st.sampled_from(["", "", "", "gzip", "deflate", "br"]),
    packed=st.booleans(),
)
def test_nothing_that_is_sent_is_answered_with_a_5xx(
    fuzzed: TestClient, content: bytes, tail: bytes, length: str | None, encoding: str, packed: bool
) -> None:
    body = content + tail
    if packed:
        body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    headers = {"Content-Encoding": encoding} | ({LENGTH: length} if length is not None else {})
    answer = fuzzed.post(URL, content=body, headers=headers)
    assert answer.status_code in (200, 400, 413), answer.text
    if answer.headers["content-type"] == "application/json":
        assert ("error" in orjson.loads(answer.content)) == (answer.status_code != 200)
