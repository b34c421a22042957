"""The protocol over REST: every route, tensors as JSON and as bytes, compressed or not, good and bad."""

import asyncio
import gzip
import json
import socket
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from cloud_service.admin import create_admin
from cloud_service.decoders import Decoders
from cloud_service.descriptions import create_catalogue
from cloud_service.guard import HttpGuard
from cloud_service.metrics import Metrics
from cloud_service.models import Models, load_models
from cloud_service.nodes import Nodes
from cloud_service.open_inference import OpenInference
from cloud_service.settings import Settings
from inference_core.body import Intake
from inference_core.catalogue import EXTENSIONS
from inference_core.http_connection import PEER
from inference_core.http_server import HttpServer
from inference_core.tensors import to_bytes, to_request
from inference_core.unserved import PATHS
from tests.bundles import SURE, UNSURE, picture, pixels, write_bundle
from tests.cloud_service.service import failing_bundle, serving

URL = "/v2/models/colors/infer"
LENGTH = "Inference-Header-Content-Length"
RED, BLUE = 0, 2
LIMIT = 16 << 10


class Cloud:
    """The service's HTTP side in the test's own process."""

    def __init__(self, bundle: Path, *, loaded: bool = True) -> None:
        options: dict[str, Any] = {"bundles": (bundle,), "threads": 1, "max_batch_size": 4}
        self.settings = Settings(**options)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.models = Models()
        self.runs = ThreadPoolExecutor(1)
        self.decoders = ThreadPoolExecutor(1)
        self.catalogue = create_catalogue(self.models, self.settings, "1.2.3")
        intake = Intake(LIMIT, 8 * LIMIT)
        protocol = OpenInference(
            self.models, self.catalogue, self.metrics, Decoders(self.decoders, 1), intake
        )
        self.app = create_admin(self.models, protocol.routes())
        if loaded:
            self.load()

    def load(self) -> None:
        self.models.load(load_models(self.settings, self.metrics, self.runs, time.monotonic))

    def counted(self) -> dict[tuple[str, str], float]:
        """Requests by model and outcome, without those of which there were none."""
        return {
            (sample.labels["model"], sample.labels["outcome"]): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "tandem_cloud_requests_total" and sample.value
        }

    def statistics(self, model: str = "colors") -> dict[str, Any]:
        (found,) = self.catalogue.statistics(model)["model_stats"]
        return dict(found)

    def close(self) -> None:
        self.runs.shutdown()
        self.decoders.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("cloud") / "colors")


@pytest.fixture
def cloud(bundle: Path) -> Iterator[Cloud]:
    made = Cloud(bundle)
    yield made
    made.close()


@pytest.fixture
def client(cloud: Cloud) -> Iterator[TestClient]:
    with TestClient(cloud.app) as made:
        yield made


def tensor(
    array: NDArray[Any], name: str = "input", datatype: str = "FP32", **changes: Any
) -> dict[str, Any]:
    data = {"data": array.ravel().tolist()}
    return {"name": name, "shape": list(array.shape), "datatype": datatype} | data | changes


def message(array: NDArray[Any], **changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(array)]} | changes


def send(client: TestClient, content: Any, url: str = URL, **headers: str) -> Any:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post(url, content=data, headers={key.replace("_", "-"): v for key, v in headers.items()})


def binary(
    array: NDArray[Any], name: str = "input", datatype: str = "FP32", **changes: Any
) -> tuple[bytes, int]:
    """A body with the tensor behind its JSON, and the length of that."""
    raw = to_bytes(array)
    part = tensor(array, name, datatype, parameters={"binary_data_size": len(raw)})
    del part["data"]
    header = json.dumps({"inputs": [part]} | changes).encode()
    return header + raw, len(header)


def winners(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return [int(row.argmax()) for row in np.array(output["data"]).reshape(output["shape"])]


def objects(elements: Sequence[bytes]) -> NDArray[Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = list(elements)
    return array


def test_server_is_live_ready_and_described(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    described = client.get("/v2").json()
    assert described == {"name": "tandem-cloud", "version": "1.2.3", "extensions": list(EXTENSIONS)}


def test_loading_service_is_live_but_not_ready(bundle: Path) -> None:
    cloud = Cloud(bundle, loaded=False)
    with TestClient(cloud.app) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/colors/ready").status_code == 503
        answer = send(client, message(pixels(SURE)))
        assert (answer.status_code, answer.json()) == (503, {"error": "the models are still loading"})
        assert int(answer.headers["retry-after"]) >= 1
        cloud.load()
        assert winners(send(client, message(pixels(SURE)))) == [RED]
    assert cloud.counted() == {("unknown", "unavailable"): 1, ("colors", "ok"): 1}
    cloud.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("colors", 200),
        ("colors/versions/1", 200),
        ("colors.image", 200),
        ("colors/versions/2", 404),
        ("shapes", 404),
    ],
)
def test_what_is_asked_of_a_model(client: TestClient, path: str, status: int) -> None:
    for question in ("", "/ready", "/config", "/stats"):
        answer = client.get(f"/v2/models/{path}{question}")
        assert answer.status_code == status, question
        assert ("error" in answer.json()) == (status == 404)


def test_documents(client: TestClient) -> None:
    assert client.get("/v2/models/colors.tail.means").json()["inputs"] == [
        {"name": "features", "datatype": "UINT8", "shape": [-1, 3]}
    ]
    config = client.get("/v2/models/colors/config").json()
    assert (config["name"], config["max_batch_size"]) == ("colors", 4)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    image = client.get("/v2/models/colors.image/config").json()
    assert (image["max_batch_size"], image["input"][0]["dims"]) == (0, [-1])
    cuts = [f"colors.{kind}.{cut}" for kind in ("packed", "tail") for cut in ("means", "pixels")]
    names = ["colors", "colors.image", *cuts]
    assert [item["name"] for item in client.get("/v2/models/stats").json()["model_stats"]] == names
    for body in (b"", b'{"ready": true}'):
        index = client.post("/v2/repository/index", content=body).json()
        assert [(item["name"], item["state"]) for item in index] == [(name, "READY") for name in names]
    assert client.post("/v2/repository/index", content=b"[").status_code == 400


def test_json_in_and_out(cloud: Cloud, client: TestClient) -> None:
    answer = send(client, message(pixels(SURE, UNSURE), id="id-7"))
    assert winners(answer) == [RED, BLUE]
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("colors", "1", "id-7")
    told = body["parameters"]
    assert told["tandem_bundle"] == cloud.models.get("colors").digest
    assert told.keys() == {"tandem_bundle", "tandem_queue_ms", "tandem_infer_ms", "tandem_total_ms"}


def test_version_in_the_path(client: TestClient) -> None:
    assert winners(send(client, message(pixels(SURE)), "/v2/models/colors/versions/1/infer")) == [RED]
    answer = send(client, message(pixels(SURE)), "/v2/models/colors/versions/2/infer")
    assert (answer.status_code, "version 2 was asked for" in answer.json()["error"]) == (404, True)


def test_bytes_in_and_out(client: TestClient) -> None:
    body, length = binary(pixels(SURE, UNSURE), parameters={"binary_data_output": True})
    answer = send(client, body, **{LENGTH: str(length)})
    assert answer.headers["content-type"] == "application/octet-stream"
    end = int(answer.headers[LENGTH])
    (output,) = json.loads(answer.content[:end])["outputs"]
    logits = np.frombuffer(answer.content[end:], "<f4").reshape(output["shape"])
    assert logits.argmax(axis=1).tolist() == [RED, BLUE]


def test_images(cloud: Cloud, client: TestClient) -> None:
    array = objects([picture(SURE, "JPEG"), picture(UNSURE)])
    body, length = binary(array, "image", "BYTES")
    answer = send(client, body, "/v2/models/colors.image/infer", **{LENGTH: str(length)})
    assert winners(answer) == [RED, BLUE]
    assert answer.json()["parameters"]["tandem_decode_ms"] > 0
    assert cloud.counted() == {("colors.image", "ok"): 1}
    answer = send(
        client, {"inputs": [tensor(objects([]), "image", "BYTES")]}, "/v2/models/colors.image/infer"
    )
    assert (answer.status_code, "0 images in one request" in answer.json()["error"]) == (400, True)


def test_features(client: TestClient) -> None:
    given = tensor(np.array([SURE, (0, 0, 255)], np.uint8), "features", "UINT8")
    assert winners(send(client, {"inputs": [given]}, "/v2/models/colors.tail.means/infer")) == [RED, BLUE]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compression_both_ways(client: TestClient, encoding: str, pack: Any) -> None:
    body, length = binary(pixels(SURE), id="x" * 2000)  # short answers are not compressed
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding, LENGTH: str(length)}
    answer = client.post(URL, content=pack(body), headers=headers)
    assert answer.headers["content-encoding"] == encoding
    assert winners(answer) == [RED]


def test_best_classes(client: TestClient) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    answer = send(client, message(pixels(SURE), outputs=wanted))
    (output,) = answer.json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert [text.split(":")[1:] for text in output["data"]] == [["0", "red"], ["2", "blue"]]


def test_statistics_count_each_request_once(cloud: Cloud, client: TestClient) -> None:
    send(client, message(pixels(SURE, UNSURE)))
    send(client, {"inputs": []})
    body, length = binary(objects([picture(SURE)] * 3), "image", "BYTES")
    send(client, body, "/v2/models/colors.image/infer", **{LENGTH: str(length)})
    full, image, tail = (cloud.statistics(f"colors{kind}") for kind in ("", ".image", ".tail.means"))
    assert (full["inference_count"], full["execution_count"]) == (2, 2)  # the images ran on it as well
    assert [run["batch_size"] for run in full["batch_stats"]] == [2, 3]
    assert full["inference_stats"]["success"]["count"] == 1
    assert full["inference_stats"]["fail"]["count"] == 1
    assert full["inference_stats"]["success"]["ns"] >= full["inference_stats"]["compute_infer"]["ns"] > 0
    assert (image["inference_count"], image["execution_count"]) == (3, 1)
    assert image["inference_stats"]["compute_input"]["ns"] > 0
    assert (tail["inference_count"], tail["last_inference"]) == (0, 0)
    assert full["last_inference"] == pytest.approx(time.time() * 1000, abs=60_000)


ARRAY = pixels(SURE)
BAD: dict[str, tuple[Any, int, str]] = {
    "nothing": (b"", 400, "body: is empty"),
    "no JSON": (b"{", 400, "body: not JSON"),
    "no inputs": ({}, 400, "inputs"),
    "unknown input": ({"inputs": [tensor(ARRAY, "x")]}, 400, "unknown input 'x'"),
    "other datatype": ({"inputs": [tensor(ARRAY, datatype="FP64")]}, 400, "datatype must be FP32"),
    "other shape": (message(ARRAY[:, :2]), 400, "shape must be [-1, 3, 8, 8], got [1, 2, 8, 8]"),
    "too many samples": (message(pixels(*[SURE] * 5)), 400, "5 samples in one request, the limit is 4"),
    "no samples": (message(pixels()), 400, "samples"),
    "unknown output": (message(ARRAY, outputs=[{"name": "x"}]), 400, "output 'x': the model has 'logits'"),
    "bad class count": (
        message(ARRAY, outputs=[{"name": "logits", "parameters": {"classification": 0}}]),
        400,
        "parameter classification must be a whole number >= 1, got 0",
    ),
    "shared memory": (
        {"inputs": [tensor(ARRAY, parameters={"shared_memory_region": "mine"})]},
        400,
        "shared memory is not served here",
    ),
    "bad timeout": (
        message(ARRAY, parameters={"timeout": -1}),
        400,
        "parameter 'timeout': must be a number from 0, got -1",
    ),
    "no time": (message(ARRAY, parameters={"timeout": 1}), 504, "time"),
    "too large": (b" " * (LIMIT + 1), 413, f"the limit is {LIMIT}"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_request_is_refused_in_words_and_the_next_is_answered(
    cloud: Cloud, client: TestClient, case: str
) -> None:
    content, status, text = BAD[case]
    answer = send(client, content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
    assert text in answer.json()["error"]
    assert cloud.statistics()["inference_stats"]["fail"]["count"] == 1
    assert winners(send(client, message(ARRAY))) == [RED]
    assert sum(cloud.counted().values()) == 2
    assert cloud.registry.get_sample_value("tandem_cloud_inflight_requests") == 0


def test_unknown_model(cloud: Cloud, client: TestClient) -> None:
    answer = send(client, message(ARRAY), "/v2/models/shapes/infer")
    assert (answer.status_code, "only colors" in answer.json()["error"]) == (404, True)
    assert cloud.counted() == {("unknown", "not_found"): 1}


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bomb_is_refused_before_it_has_grown(client: TestClient, encoding: str, pack: Any) -> None:
    bomb = pack(b" " * (1 << 24))
    assert len(bomb) <= LIMIT
    answer = send(client, bomb, Content_Encoding=encoding)
    assert answer.status_code == 413
    assert answer.json()["error"] == f"body: over the limit of {LIMIT} bytes when decompressed"


def test_body_that_grows_over_the_limit_without_saying_so(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * (LIMIT // 2)

    answer = client.post(URL, content=chunks())
    assert (answer.status_code, answer.json()["error"]) == (413, f"body: over the limit of {LIMIT} bytes")


def test_model_that_fails_tells_nothing_and_costs_one_request(tmp_path: Path) -> None:
    cloud = Cloud(failing_bundle(tmp_path / "fails"))
    with TestClient(cloud.app) as client:
        answer = send(client, message(pixels(SURE)))
        assert answer.status_code == 500
        assert answer.json() == {"error": "the model failed; the service's log has the details"}
        assert winners(send(client, message(pixels(UNSURE)))) == [BLUE]
    assert cloud.counted() == {("colors", "internal"): 1, ("colors", "ok"): 1}
    assert cloud.statistics()["inference_stats"]["fail"]["count"] == 1
    cloud.close()


def test_what_is_not_served_says_so(client: TestClient) -> None:
    for path, words in PATHS:
        filled = path.replace("{rest:path}", "status").replace("{model}", "colors")
        for method in ("GET", "POST"):
            answer = client.request(method, f"/v2{filled}")
            assert answer.status_code == 404
            assert words in answer.json()["error"]
    for method, path, status in (("GET", URL, 405), ("POST", "/v2", 405), ("GET", "/v2/else", 404)):
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


@pytest.fixture(scope="module")
def fuzzed(bundle: Path) -> Iterator[TestClient]:
    cloud = Cloud(bundle)
    with TestClient(cloud.app) as client:
        yield client
    cloud.close()


@settings(max_examples=100)
@given(
    st.binary(max_size=64)
    | st.dictionaries(
        st.sampled_from(["inputs", "outputs", "parameters", "id"]),
        (
            st.none()
            | st.integers()
            | st.text(max_size=4)
            | st.lists(st.just(tensor(ARRAY)) | st.none(), max_size=2)
        ),
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["", "gzip", "deflate", "br"]),
    st.none() | st.text("0123456789-x", max_size=6),
)
def test_nothing_that_is_sent_is_answered_with_a_5xx(
    fuzzed: TestClient, body: bytes, encoding: str, length: str | None
) -> None:
    headers = {"Content-Encoding": encoding} | ({} if length is None else {LENGTH: length})
    answer = fuzzed.post(URL, content=body, headers=headers)
    assert answer.status_code in (200, 400, 413), answer.text
    assert ("error" in answer.json()) == (answer.status_code != 200)


@pytest.mark.anyio
async def test_client_that_hangs_up_while_it_sends_is_counted_as_that(bundle: Path) -> None:
    cloud = Cloud(bundle)
    server = HttpServer(cloud.app, "127.0.0.1", 0, 1.0)
    server.start()

    def hang_up() -> None:
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{{".encode())

    await asyncio.to_thread(hang_up)
    async with asyncio.timeout(30):
        while cloud.counted() != {("colors", "cancelled"): 1}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def ask() -> Any:
        data = json.dumps(message(ARRAY)).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{URL}", data, timeout=10) as answer:
            return json.load(answer)

    assert (await asyncio.to_thread(ask))["model_name"] == "colors"
    await cloud.models.close()
    await server.stop()
    cloud.close()


@pytest.mark.anyio
async def test_both_transports_count_in_the_same_place(bundle: Path) -> None:
    async with serving(bundle) as service:
        await service.stub.ModelInfer(to_request("colors", "", {"input": pixels(SURE, UNSURE)}, {}, ""))
        await service.idle()
        (found,) = create_catalogue(service.models, service.settings, "1").statistics("colors")["model_stats"]
        assert (found["inference_count"], found["execution_count"]) == (2, 1)
        assert found["inference_stats"]["success"]["count"] == 1


def test_who_takes_turns_is_the_node_of_the_certificate(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[str] = []
    admission = cloud.models.get("colors").batcher.admission
    let_in = admission.let_in

    def watched(rows: int, deadline: float, priority: Any, caller: str) -> Any:
        callers.append(caller)
        return let_in(rows, deadline, priority, caller)

    monkeypatch.setattr(admission, "let_in", watched)
    guarded = HttpGuard(cloud.app, Nodes())

    async def connected(scope: Any, receive: Any, send: Any) -> None:
        names = (("URI", "spiffe://tandem/edge/edge-7"),)
        await guarded({**scope, "state": {PEER: {"subjectAltName": names}}}, receive, send)

    for app in (connected, cloud.app):
        body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8],
                            "data": pixels(SURE).ravel().tolist()}]}  # fmt: skip
        assert TestClient(app).post(URL, json=body).status_code == 200
    assert callers == ["edge-7", "testclient"]
