"""The application's health, errors and documentation in process; its bodies and its end on a real port."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from starlette.testclient import TestClient

from inference_core.connections import Connections
from inference_core.http_bounds import Bounds
from inference_core.http_server import HttpServer
from tests.bundles import SURE, UNSURE, picture
from tests.edge_node.node import CloudSimulator, Node, failing_bundle, node

URL = "/v1/models/colors/predict"
PNG = {"Content-Type": "image/png"}


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"live": True}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})


def test_loading_node_is_alive_and_says_when_to_come_back(colors: Path) -> None:
    with node(colors, loaded=False) as edge, TestClient(edge.app()) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/v2/health/live").status_code == 200
        for url in ("/readyz", "/v2/health/ready", "/v2/models/colors/ready"):
            assert client.get(url).status_code == 503
        assert client.get("/v1/models").json() == {"models": []}
        for method, url in (
            ("POST", URL),
            ("POST", "/v2/models/colors/infer"),
            ("GET", "/v1/models/colors"),
            ("GET", "/v2/models/colors"),
        ):
            answer = client.request(method, url, content=b'{"inputs": []}', headers=PNG)
            assert answer.status_code == 503, url
            assert answer.headers["retry-after"] == "1"
            assert answer.json() == {"error": "the models are still loading"}
        assert edge.series("tandem_refused_requests_total") == {
            ("device", "503"): 2,
            ("open_inference", "503"): 2,
        }
        edge.load()
        assert client.get("/readyz").status_code == 200
        assert client.post(URL, content=picture(SURE), headers=PNG).status_code == 200


def test_stopping_node_is_not_ready_and_still_answers(edge: Node, client: TestClient) -> None:
    edge.slots.ready = False
    assert client.get("/readyz").status_code == 503
    assert client.post(URL, content=picture(SURE), headers=PNG).status_code == 200


@pytest.mark.parametrize(
    ("method", "url", "status", "api"),
    [
        ("GET", "/", 404, "device"),
        ("GET", "/v1/nowhere", 404, "device"),
        ("GET", "/v2/nowhere", 404, "open_inference"),
        ("GET", URL, 405, "device"),
        ("DELETE", "/v1/models", 405, "device"),
        ("POST", "/readyz", 405, "device"),
        ("PUT", "/v2/models/colors/infer", 405, "open_inference"),
    ],
)
def test_unknown_routes_have_the_same_form_of_error(
    edge: Node, client: TestClient, method: str, url: str, status: int, api: str
) -> None:
    answer = client.request(method, url)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].startswith(f"{method} {url}: ")
    assert ("allow" in answer.headers) == (status == 405)
    assert edge.series("tandem_refused_requests_total") == {(api, str(status)): 1}


def test_documentation(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text.lower()
    schema = client.get("/openapi.json").json()
    assert schema["info"]["title"] == "Tandem edge node"
    assert {
        *("/healthz", "/readyz", "/v1/models", "/v1/models/{model}", "/v1/models/{model}/predict", "/v2"),
        *("/v2/health/live", "/v2/health/ready", "/v2/models/{model}", "/v2/models/{model}/infer"),
        *("/v2/models/{model}/versions/{version}/infer", "/v2/models/{model}/versions/{version}"),
        *("/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"),
        *("/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config"),
        *("/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats", "/v2/models/stats"),
        "/v2/repository/index",
    } == schema["paths"].keys()
    predict = schema["paths"][URL.replace("colors", "{model}")]["post"]
    assert {item["name"] for item in predict["parameters"]} == {
        *("model", "mode", "cut", "deadline_ms", "threshold", "top_k", "priority", "keep"),
    }
    assert predict["requestBody"]["content"].keys() == {
        *("image/jpeg", "image/png", "image/webp", "multipart/form-data", "application/octet-stream"),
    }
    assert {"200", "400", "404", "413", "503"} <= predict["responses"].keys()


def test_bug_costs_one_request_and_tells_nothing(colors: Path, caplog: pytest.LogCaptureFixture) -> None:
    cloud = CloudSimulator(colors)
    cloud.failure = RuntimeError("a bug, with a secret in its text")
    with node(colors, cloud=cloud) as edge:
        client = TestClient(edge.app(), raise_server_exceptions=False)
        answer = client.post(URL, content=picture(UNSURE), headers=PNG)
        assert answer.status_code == 500
        assert answer.json() == {"error": "internal error; the service's log has the details"}
        assert edge.series("tandem_refused_requests_total") == {("device", "500"): 1}
        assert edge.value("tandem_inflight_requests") == 0
        assert client.post(URL, content=picture(SURE), headers=PNG).status_code == 200


def test_model_that_fails_is_the_services_fault_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with node(failing_bundle(tmp_path / "fails")) as edge, TestClient(edge.app()) as client:
        answer = client.post(URL, content=picture(SURE), headers=PNG)
        assert answer.status_code == 500
        assert answer.json() == {"error": "the model failed; the service's log has the details"}
        assert edge.series("tandem_refused_requests_total") == {("device", "500"): 1}
        assert "edge-int8.onnx: the run failed" in caplog.text
        assert client.post(URL, content=picture(UNSURE), headers=PNG).status_code == 200


class Connection:
    """A raw HTTP connection: what is sent is exactly what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)

    def post(self, *headers: str, url: str = URL) -> None:
        """The head of a POST of an image."""
        lines = [f"POST {url} HTTP/1.1", "Host: edge", "Content-Type: image/png", *headers]
        self.send("\r\n".join([*lines, "", ""]).encode())

    async def answer(self) -> tuple[int, Any]:
        """Status and JSON body of the next answer."""
        async with asyncio.timeout(30):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                int(line.split(":")[1])
                for line in head.splitlines()
                if line.lower().startswith("content-length")
            )
            body = await self._reader.readexactly(length)
        return int(head.split()[1]), json.loads(body)

    async def ended(self) -> bytes:
        """What still comes until the server closes the connection."""
        async with asyncio.timeout(30):
            return await self._reader.read()


class Listening:
    """A node on a real port."""

    def __init__(self, edge: Node) -> None:
        self.server = HttpServer(edge.app(), "127.0.0.1", 0, 5.0)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(edge: Node) -> AsyncIterator[Listening]:
    made = Listening(edge)
    made.server.start()
    try:
        yield made
    finally:
        await made.server.stop()


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@pytest.fixture
async def small(colors: Path, cloud: CloudSimulator) -> AsyncIterator[tuple[Node, Listening]]:
    """A listening node that takes bodies of up to 1024 bytes."""
    with node(colors, cloud=cloud, max_body_bytes=1024) as edge:
        async with listening(edge) as made:
            yield edge, made


Small = tuple[Node, Listening]
GOOD = picture(SURE)


@pytest.mark.anyio
async def test_bodies_in_one_piece_and_in_chunks(small: Small) -> None:
    _, there = small
    async with there.connection() as c:
        c.post(f"Content-Length: {len(GOOD)}")
        c.send(GOOD)
        assert (await c.answer())[0] == 200
        c.post("Transfer-Encoding: chunked")
        c.send(chunked(GOOD[:10], GOOD[10:11], GOOD[11:]))
        status, body = await c.answer()
        assert (status, body["prediction"]["label"]) == (200, "red")


@pytest.mark.anyio
async def test_chunks_over_the_limit_are_refused_before_they_end(small: Small) -> None:
    edge, there = small
    async with there.connection() as c:
        c.post("Transfer-Encoding: chunked")
        c.send(b"800\r\n" + b"x" * 2048 + b"\r\n")  # and more would follow
        assert await c.answer() == (413, {"error": "body: over the limit of 1024 bytes"})
    assert edge.series("tandem_refused_requests_total") == {("device", "413"): 1}
    async with there.connection() as c:
        c.post("Transfer-Encoding: chunked", url="/v2/models/colors/infer")
        c.send(b"800\r\n" + b"x" * 2048 + b"\r\n")
        assert (await c.answer())[0] == 413


@pytest.mark.anyio
async def test_declared_length_over_the_limit_is_refused_before_it_is_sent(small: Small) -> None:
    _, there = small
    async with there.connection() as c:
        c.post("Content-Length: 1025")
        assert await c.answer() == (413, {"error": "body: 1025 bytes, the limit is 1024"})
    async with there.connection() as c:
        c.post("Content-Length: 1025", "Expect: 100-continue")
        assert (await c.answer())[0] == 413


@pytest.mark.anyio
async def test_refused_requests_leave_the_connection_usable(small: Small) -> None:
    _, there = small
    async with there.connection() as c:
        for headers, body, expected in (
            (["Content-Length: 5"], b"hello", 400),
            (["Content-Length: 0"], b"", 400),
            (["Transfer-Encoding: chunked"], chunked(), 400),
            ([f"Content-Length: {len(GOOD)}", "X-Request-Id: a b"], GOOD, 400),
            ([f"Content-Length: {len(GOOD)}"], GOOD, 200),
        ):
            c.post(*headers)
            c.send(body)
            assert (await c.answer())[0] == expected


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: x"],
        ["Content-Length: -1"],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length: \u00b2"],
        ["Content-Length: 1", "Content-Length: 2"],
        ["No colon"],
    ],
)
async def test_garbage_on_the_wire_ends_one_connection_only(small: Small, headers: list[str]) -> None:
    _, there = small
    async with there.connection() as c:
        c.post(*headers)
        c.send(b"\r\n\r\n")
        assert (await c.ended())[:12] in (b"", b"HTTP/1.1 400")
    async with there.connection() as c:
        c.post(f"Content-Length: {len(GOOD)}")
        c.send(GOOD)
        assert (await c.answer())[0] == 200


@pytest.mark.anyio
async def test_client_that_hangs_up_in_the_middle_of_its_body(small: Small) -> None:
    edge, there = small
    async with there.connection() as c:
        c.post("Content-Length: 1000", "Expect: 100-continue")
        c.send(b"x" * 10)
    async with asyncio.timeout(30):
        while edge.series("tandem_refused_requests_total") != {("device", "499"): 1}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    async with there.connection() as c:
        c.post(f"Content-Length: {len(GOOD)}")
        c.send(GOOD)
        assert (await c.answer())[0] == 200


@pytest.mark.anyio
async def test_stop_lets_requests_in_flight_end_and_closes_the_port(
    colors: Path, cloud: CloudSimulator
) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    with node(colors, cloud=cloud) as edge:
        there = Listening(edge)
        there.server.start()
        async with there.connection() as c:
            c.post(f"Content-Length: {len(picture(UNSURE))}", url=f"{URL}?deadline_ms=500")
            c.send(picture(UNSURE))
            await cloud.arrived.wait()
            stopping = asyncio.create_task(there.server.stop())
            status, body = await c.answer()
            assert (status, body["reason"]) == (200, "deadline")
            await stopping
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", there.server.port)


@pytest.mark.anyio
async def test_port_that_is_taken(small: Small) -> None:
    edge, there = small
    with pytest.raises(OSError, match="in use"):
        HttpServer(edge.app(), "127.0.0.1", there.server.port, 1.0)


async def test_a_tls_handshake_has_the_time_of_a_head(edge: Node) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = HttpServer(edge.app(), "127.0.0.1", 0, 1.0, Connections(Bounds(head_s=0.3)), context)
    server.start()
    try:
        silent, mute = await asyncio.open_connection("127.0.0.1", server.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(silent.read(), 5.0) == b""
        for each in (writer, mute):
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()
    finally:
        await server.stop()
