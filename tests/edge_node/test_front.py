"""The front: which requests it answers itself, what its handlers see, and what becomes of their errors."""

import asyncio
import hashlib
import http.client
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from edge_node.front import Call, Front, Reply
from edge_node.keys import Entry, Keyring
from edge_node.metrics import Metrics
from edge_node.refusals import Refusals
from inference_core.errors import InvalidInput, ModelError, ModelNotFound, Overloaded, TooLarge
from inference_core.http_connection import REFUSED
from inference_core.http_server import HttpServer

pytestmark = pytest.mark.anyio

BUG = "internal error; the service's log has the details"


class Rig:
    """A front between two handlers and an app, which all keep what they were given."""

    def __init__(self, keyring: Keyring | None = None) -> None:
        self.registry = CollectorRegistry()
        self.calls: list[tuple[str, Call]] = []
        self.passed: list[tuple[Scope, Receive, Send]] = []
        self.answer: Callable[[Call], Awaitable[Reply]] = self._plain
        refusals = Refusals(Metrics(self.registry))
        self.front = Front(self._app, refusals, predict=self._predict, infer=self._infer, keyring=keyring)

    async def _predict(self, call: Call) -> Reply:
        self.calls.append(("predict", call))
        return await self.answer(call)

    async def _infer(self, call: Call) -> Reply:
        self.calls.append(("infer", call))
        return await self.answer(call)

    async def _plain(self, call: Call) -> Reply:
        while (await call.receive()).get("more_body"):
            pass
        return Reply(json.dumps([call.model, call.version]).encode())

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.passed.append((scope, receive, send))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"3")]})
            await send({"type": "http.response.body", "body": b"app"})

    def fail(self, error: BaseException) -> None:
        """Let the handlers raise this from now on."""

        async def answer(call: Call) -> Reply:
            raise error

        self.answer = answer

    async def ask(self, path: str, method: str = "POST", **changes: Any) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of what the front itself answers to a request."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"body", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        await self.front(scope | changes, receive, send)
        start, body = sent
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert int(headers["content-length"]) == len(body["body"])
        return start["status"], headers, json.loads(body["body"])

    def refused(self) -> dict[tuple[str, str], float]:
        """The refusals counted, by interface and status."""
        return {
            (sample.labels["api"], sample.labels["status"]): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "tandem_refused_requests_total" and sample.value
        }


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models/digits/predict", ("predict", "digits", "")),
        ("/v2/models/digits/infer", ("infer", "digits", "")),
        ("/v2/models/digits/versions/3/infer", ("infer", "digits", "3")),
        ("/v2/models/a b/infer", ("infer", "a b", "")),
        ("/v2/models/versions/infer", ("infer", "versions", "")),
        ("/v2/models/infer/versions/infer/infer", ("infer", "infer", "infer")),
        ("/v2/models/stats/infer", ("infer", "stats", "")),
        ("/v1/models/Ziffern-ä/predict", ("predict", "Ziffern-ä", "")),
    ],
)
async def test_paths_of_inference(rig: Rig, path: str, route: tuple[str, str, str]) -> None:
    assert (await rig.ask(path))[0] == 200
    ((handler, call),) = rig.calls
    assert (handler, call.model, call.version) == route
    assert rig.passed == []


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1", "/v2", "/healthz", "/docs", "/v1/models", "/v2/models/digits"),
        *("/v1/models/digits/predict/", "/v2/models/digits/infer/", "//v1/models/digits/predict"),
        *("/v1/models//predict", "/v2/models//infer", "/v2/models/m/versions//infer"),
        *("/v2/models//versions/1/infer", "/v2/models/a/b/infer", "/v1/models/a/b/predict"),
        *("/V1/models/digits/predict", "/v1/models/digits/infer", "/v2/models/digits/predict"),
        *("/v1/models/digits/versions/1/predict", "/v2/models/digits/versions/1/ready", "/v2/models/infer"),
        "/prefix/v1/models/digits/predict",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_all_other_paths_are_the_apps(rig: Rig, path: str, method: str) -> None:
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await rig.front(scope, receive, send)
    ((passed, its_receive, its_send),) = rig.passed
    assert passed is scope
    assert (its_receive, its_send) == (receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert rig.calls == []


@pytest.mark.parametrize("scope", [{"type": "lifespan"}, {"type": "websocket", "path": "/v2/models/m/infer"}])
async def test_what_is_not_http_is_the_apps(rig: Rig, scope: Scope) -> None:
    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        pass

    await rig.front(scope, receive, send)
    assert rig.passed == [(scope, receive, send)]
    assert rig.calls == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "post"])
async def test_other_methods(rig: Rig, method: str) -> None:
    for path, api in (("/v1/models/m/predict", "device"), ("/v2/models/m/infer", "open_inference")):
        status, headers, body = await rig.ask(path, method)
        assert (status, headers["allow"]) == (405, "POST")
        assert body == {"error": f"{method} {path}: Method Not Allowed"}
        assert rig.refused()[api, "405"] == 1
    assert rig.calls == []


async def test_what_a_handler_sees(rig: Rig) -> None:
    headers = [(b"x-one", b"1"), (b"x-more", b"caf\xe9"), (b"x-empty", b"")]
    await rig.ask("/v1/models/m/predict", headers=headers, query_string=b"top_k=3")
    ((_, call),) = rig.calls
    assert call.query == b"top_k=3"
    assert [call.header(name) for name in (b"x-one", b"x-more", b"x-empty", b"x-none")] == [
        "1",
        "café",
        "",
        "",
    ]
    assert await call.receive() == {"type": "http.request", "body": b"body", "more_body": False}


async def test_what_a_handler_says_is_what_is_sent(rig: Rig) -> None:
    async def answer(call: Call) -> Reply:
        return Reply(b"[1, 2]", b"application/x-own", [(b"x-own", b"7"), (b"x-own", b"8")])

    rig.answer = answer
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v2/models/m/infer", "headers": []}
    await rig.front(scope | {"query_string": b""}, receive, send)
    headers = [(b"content-length", b"6"), (b"content-type", b"application/x-own")]
    assert sent == [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [*headers, (b"x-own", b"7"), (b"x-own", b"8")],
        },
        {"type": "http.response.body", "body": b"[1, 2]"},
    ]
    assert rig.refused() == {}


async def test_replies_do_not_share_their_headers() -> None:
    Reply(b"").headers.append((b"x-id", b"1"))
    assert Reply(b"").headers == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InvalidInput("body: is empty"), 400, "body: is empty"),
        (ModelNotFound("no model 'm'"), 404, "no model 'm'"),
        (TooLarge("body: 9 bytes, the limit is 8"), 413, "body: 9 bytes, the limit is 8"),
        (Overloaded("busy"), 503, "busy"),
        (ModelError("secret"), 500, "the model failed; the service's log has the details"),
        (HTTPException(418, "tea"), 418, "POST /v1/models/m/predict: tea"),
        (ClientDisconnect(), 499, "the client hung up"),
        (RuntimeError("secret"), 500, BUG),
        (KeyError("secret"), 500, BUG),
        (TimeoutError("secret"), 500, BUG),
    ],
)
async def test_errors(rig: Rig, error: Exception, status: int, message: str) -> None:
    rig.fail(error)
    found, headers, body = await rig.ask("/v1/models/m/predict")
    assert (found, body) == (status, {"error": message})
    assert headers["content-type"] == "application/json"
    assert headers.get("retry-after") == ("1" if status == 503 else None)
    assert rig.refused() == {("device", str(status)): 1}


async def test_a_header_that_says_what_the_body_is_comes_once(rig: Rig) -> None:
    pair = (b"content-encoding", b"gzip")
    status, _, body = await rig.ask("/v1/models/m/predict", headers=[pair, pair])
    assert (status, body) == (400, {"error": "content-encoding: is given 2 times, the limit is 1"})


async def test_what_its_sender_has_been_told_is_counted_as_that(rig: Rig) -> None:
    rig.fail(ClientDisconnect())
    status, _, body = await rig.ask("/v2/models/m/infer", state={REFUSED: (408, "body: too slow")})
    assert (status, body) == (408, {"error": "body: too slow"})
    assert rig.refused() == {("open_inference", "408"): 1}


async def test_cancelling_is_no_error(rig: Rig) -> None:
    rig.fail(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await rig.ask("/v1/models/m/predict")
    assert rig.refused() == {}


# ---- on a real server


@asynccontextmanager
async def connection(rig: Rig) -> AsyncIterator[http.client.HTTPConnection]:
    """One connection to the front; it fails instead of connecting once more by itself."""
    server = HttpServer(rig.front, "127.0.0.1", 0, 5.0)
    server.start()
    made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        await asyncio.to_thread(made.connect)
        made.auto_open = 0
        yield made
    finally:
        made.close()
        await server.stop()


async def exchange(
    connection: http.client.HTTPConnection, method: str, url: str, body: bytes = b""
) -> tuple[int, bytes]:
    def turn() -> tuple[int, bytes]:
        connection.request(method, url, body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    return await asyncio.to_thread(turn)


async def test_a_bug_costs_one_request_and_not_the_connection(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    good = rig.answer
    async with connection(rig) as c:
        for body in (b"", b"x" * 100_000):  # which nobody has read when the handler fails
            rig.fail(ZeroDivisionError("a secret"))
            status, answer = await exchange(c, "POST", "/v2/models/m/infer", body)
            assert (status, json.loads(answer)) == (500, {"error": BUG})
            rig.answer = good
            assert await exchange(c, "POST", "/v2/models/m/infer", body) == (200, b'["m", ""]')
    failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in failures] == ["POST /v2/models/m/infer failed unexpectedly"] * 2
    assert "a secret" in caplog.text  # the log tells what the sender is not told


async def test_every_method_leaves_the_connection_usable(rig: Rig) -> None:
    async with connection(rig) as c:
        for method in ("HEAD", "GET", "OPTIONS", "DELETE"):
            status, answer = await exchange(c, method, "/v1/models/m/predict")
            assert (status, answer == b"") == (405, method == "HEAD")
        assert await exchange(c, "POST", "/v1/models/m/predict") == (200, b'["m", ""]')


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("/v2/models/a%20b/infer", ["a b", ""]),
        ("/v2/models/%C3%A4/versions/1%2E0/infer", ["ä", "1.0"]),
        ("/v2/models/a+b/infer?x=%2F", ["a+b", ""]),
        ("/v2/models/..%2e/infer", ["...", ""]),
        ("/v2/models/a%2Fb/infer", None),  # a slash is no part of a name
        ("/v2/models/%2F/infer", None),
        ("/v2/models/a%252Fb/infer", ["a%2Fb", ""]),
    ],
)
async def test_names_that_are_encoded(rig: Rig, url: str, answer: list[str] | None) -> None:
    async with connection(rig) as c:
        status, body = await exchange(c, "POST", url)
        assert (status, body) == ((404, b"app") if answer is None else (200, json.dumps(answer).encode()))


async def test_a_client_that_hangs_up_is_told_to_the_handler(rig: Rig) -> None:
    reading, gone = asyncio.Event(), asyncio.Event()

    async def answer(call: Call) -> Reply:
        reading.set()
        while (message := await call.receive())["type"] != "http.disconnect":
            assert message["more_body"]
        gone.set()
        raise ClientDisconnect

    rig.answer = answer
    async with connection(rig) as c:
        c.putrequest("POST", "/v1/models/m/predict")
        c.putheader("Content-Length", "1000")
        await asyncio.to_thread(c.endheaders, b"only this")
        async with asyncio.timeout(30):
            await reading.wait()
            c.close()
            await gone.wait()
    assert rig.refused() == {("device", "499"): 1}


def guarded(**limits: Any) -> Rig:
    """A front for whoever has the key "good"."""
    entry = Entry(name="camera", sha256=hashlib.sha256(b"good").hexdigest(), **limits)
    return Rig(Keyring([entry], lambda: 0.0))


GOOD = [(b"authorization", b"Bearer good")]
PREDICT = "/v1/models/digits/predict"


@pytest.mark.parametrize(
    "path", [PREDICT, "/v2/models/digits/infer", "/v1/models", "/docs", "/openapi.json", "/"]
)
@pytest.mark.parametrize("headers", [[], [(b"x-api-key", b"bad")]])
async def test_without_a_key_every_path_is_refused_before_its_body(
    path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    rig = guarded()
    status, answered, body = await rig.ask(path, headers=headers)
    assert (status, answered["www-authenticate"]) == (401, 'Bearer realm="tandem"')
    assert body["error"].startswith("key: ")
    assert (rig.calls, rig.passed) == ([], [])
    assert list(rig.refused().values()) == [1]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"])
async def test_health_is_for_all(path: str) -> None:
    rig = guarded()
    await rig.front({"type": "http", "method": "GET", "path": path, "headers": []}, nothing, nowhere)
    assert len(rig.passed) == 1


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def nowhere(_: Message) -> None:
    return None


async def test_a_key_opens_what_it_is_for() -> None:
    rig = guarded(models=["digits"], rate=0.25, burst=2)
    assert (await rig.ask(PREDICT, headers=GOOD))[0] == 200
    assert (await rig.ask("/v1/models/colors/predict", headers=GOOD))[0] == 403
    assert (await rig.ask(PREDICT, headers=[(b"x-api-key", b"good")]))[0] == 200
    status, headers, body = await rig.ask(PREDICT, headers=GOOD)
    assert (status, headers["retry-after"]) == (429, "4")
    assert body == {"error": "key 'camera': 0.25 requests a second are its limit"}
    await rig.front(
        {"type": "http", "method": "GET", "path": "/v1/models", "headers": GOOD}, nothing, nowhere
    )
    assert len(rig.passed) == 1
