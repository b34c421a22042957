"""The management port: metrics while the loop is stuck, and who may do what."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from inference_core.errors import BundleError, NotReady
from inference_core.management import Management, Refused

pytestmark = pytest.mark.anyio
TOKEN = "open sesame"


async def _echo(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"given": dict(document), "loop": id(asyncio.get_running_loop())}


async def _refuse(document: Mapping[str, Any]) -> Mapping[str, Any]:
    raise {"bundle": BundleError("x.onnx: broken"), "busy": NotReady("busy"), "bad": Refused(400, "bad")}[
        document["how"]
    ]


@contextmanager
def listening(host: str = "127.0.0.1", token: str = "") -> Iterator[Management]:
    registry = CollectorRegistry()
    Gauge("tandem_answer", "of everything", registry=registry).set(42)
    management = Management(registry, host, 0, token)
    management.add("POST", "/admin/echo", _echo)
    management.add("PUT", "/admin/refuse", _refuse)
    management.start()
    try:
        yield management
    finally:
        management.stop()


def ask(
    management: Management,
    method: str,
    path: str,
    body: str | None = None,
    host: str = "127.0.0.1",
    **headers: str,
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, management.port, timeout=10)
    connection.request(method, path, body, {name.title(): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


async def test_metrics_are_told_while_the_loop_is_stuck() -> None:
    with listening(token=TOKEN) as management:
        # This very call holds the loop.
        status, page = ask(management, "GET", "/metrics")
    assert status == 200
    assert "tandem_answer 42.0" in page


async def test_an_action_runs_on_the_loop_and_gets_the_document() -> None:
    with listening() as management:
        status, text = await asyncio.to_thread(ask, management, "POST", "/admin/echo", '{"a": 1}')
        assert (status, json.loads(text)) == (
            200,
            {"given": {"a": 1}, "loop": id(asyncio.get_running_loop())},
        )
        status, text = await asyncio.to_thread(ask, management, "POST", "/admin/echo")
        assert json.loads(text)["given"] == {}


@pytest.mark.parametrize(("how", "status"), [("bundle", 422), ("busy", 409), ("bad", 400)])
async def test_what_is_refused_says_why(how: str, status: int) -> None:
    with listening() as management:
        told = await asyncio.to_thread(ask, management, "PUT", "/admin/refuse", json.dumps({"how": how}))
    assert told[0] == status
    assert json.loads(told[1]).keys() == {"error"}


@pytest.mark.parametrize(
    ("header", "status"),
    [({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": f"Basic {TOKEN}"}, 401),
     ({"authorization": f"Bearer {TOKEN}"}, 200), ({"authorization": f"bearer {TOKEN}"}, 200),
     ({"authorization": f"Bearer {TOKEN}", "origin": "http://example.com"}, 403)],
)  # fmt: skip
async def test_who_has_the_token_may(header: dict[str, str], status: int) -> None:
    with listening(token=TOKEN) as management:
        answered = await asyncio.to_thread(ask, management, "POST", "/admin/echo", **header)
    assert answered[0] == status


def _own_address() -> str:
    """An address of this machine that others could use; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.mark.skipif(_own_address().startswith("127."), reason="this machine has no address beyond its own")
async def test_beyond_this_machine_nothing_is_done_without_a_token() -> None:
    with listening("0.0.0.0") as management:
        status, text = await asyncio.to_thread(ask, management, "POST", "/admin/echo", host=_own_address())
        assert (status, json.loads(text)) == (
            403,
            {"error": "without an admin token, only this machine may ask"},
        )
        assert (await asyncio.to_thread(ask, management, "GET", "/metrics", host=_own_address()))[0] == 200
        assert (await asyncio.to_thread(ask, management, "POST", "/admin/echo"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [("GET", "/admin/echo", None, 405), ("GET", "/else", None, 404), ("POST", "/admin/echo", "{", 400),
     ("POST", "/admin/echo", "[1]", 400), ("POST", "/admin/echo", "[" * 2000, 400),
     ("POST", "/admin/echo", " " * 5000, 413)],
)  # fmt: skip
async def test_other_requests_are_refused(method: str, path: str, body: str | None, status: int) -> None:
    with listening() as management:
        assert (await asyncio.to_thread(ask, management, method, path, body))[0] == status


async def test_each_action_is_logged_and_nothing_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with listening(token=TOKEN) as management:
        await asyncio.to_thread(ask, management, "POST", "/admin/echo", authorization=f"Bearer {TOKEN}")
        await asyncio.to_thread(ask, management, "POST", "/admin/echo")
        await asyncio.to_thread(ask, management, "GET", "/metrics")
    lines = [record.getMessage() for record in caplog.records if record.name == "inference_core.management"]
    assert [line.partition(",")[0] for line in lines] == [
        "POST /admin/echo by 127.0.0.1: 200",
        "POST /admin/echo by 127.0.0.1: 401",
    ]
    assert TOKEN not in caplog.text


async def test_a_line_of_the_log_stays_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with listening() as management:
        await asyncio.to_thread(ask, management, "POST", "/admin/x%0a2026%20INFO%20all%20is%20well")
        await asyncio.to_thread(ask, management, "POST", "/admin/" + "x" * 5000)
    lines = [record.getMessage() for record in caplog.records if record.name == "inference_core.management"]
    assert len(lines) == 2
    assert "/admin/x\\n2026" in lines[0]
    assert all("\n" not in line and len(line) < 1000 for line in lines)


async def test_who_opens_connections_does_not_open_threads_without_end() -> None:
    before = threading.active_count()
    with listening() as management, contextlib.ExitStack() as silent:
        for _ in range(100):
            silent.enter_context(socket.create_connection(("127.0.0.1", management.port)))
        await asyncio.sleep(0.2)
        assert threading.active_count() - before <= 34
        silent.close()
        await asyncio.sleep(0.2)
        assert (await asyncio.to_thread(ask, management, "GET", "/metrics"))[0] == 200


async def test_a_taken_port_is_named() -> None:
    with listening() as management, pytest.raises(OSError, match=f"127.0.0.1:{management.port}"):
        Management(CollectorRegistry(), "127.0.0.1", management.port, "")


async def test_it_is_closed_soon_and_so_is_one_that_was_never_started() -> None:
    with listening() as management:
        started = time.monotonic()
    assert time.monotonic() - started < 1
    with pytest.raises(ConnectionRefusedError):
        ask(management, "GET", "/metrics")
    Management(CollectorRegistry(), "127.0.0.1", 0, "").stop()
