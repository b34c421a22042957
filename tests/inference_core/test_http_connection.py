"""Connections on a real port: what strangers may send, how slowly, and how many of them may be there."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from inference_core.connections import MAX_TURNED_AWAY, Connections
from inference_core.http_bounds import Bounds
from inference_core.http_connection import MAX_PIPELINED, REFUSED, vouch

pytestmark = pytest.mark.anyio
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
LIMIT = 2048


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class App:
    """Answers with the size of the body, and vouches for whoever asks for more than health; `gate` holds
    answers back, `size` makes them large."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.size = 0
        self.asked = 0
        self.told: list[Any] = []
        self.trailers: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            self.told.append(scope["state"].get(REFUSED))
            return
        await self.gate.wait()
        self.trailers.append([name for name, _ in scope["headers"]])
        if scope["path"] != "/healthz":
            vouch(scope)
        await PlainTextResponse(b"x" * self.size or str(len(body)).encode())(scope, receive, send)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class Rig:
    """A server with these bounds, whose connections are looked at when a test says so."""

    def __init__(self, bounds: Bounds) -> None:
        self.app = App()
        self.refused: list[int] = []
        self.displaced = 0
        self.connections = Connections(bounds, self.refused.append, self._count)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.server = _Uvicorn(
            uvicorn.Config(
                self.app,
                http=self.connections.connect,  # type: ignore[arg-type]
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=1,
            )
        )

    def _count(self) -> None:
        self.displaced += 1

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection(*self.socket.getsockname())
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def pass_time(self, seconds: float) -> None:
        """Look at all connections as if so much time had passed."""
        self.connections.sweep(asyncio.get_running_loop().time() + seconds)


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            return (
                int(head[0].split()[1]),
                headers,
                await self.reader.readexactly(int(headers["content-length"])),
            )

    async def refusal(self) -> tuple[int, str]:
        """Status and words of the next answer, which is the last."""
        status, headers, body = await self.answer()
        assert headers["connection"] == "close"
        assert headers["content-type"] == "application/json"
        await self.ended()
        return status, json.loads(body)["error"]

    async def ended(self) -> bytes:
        """What still comes before the server closes."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def serving(**bounds: Any) -> AsyncIterator[Rig]:
    rig = Rig(Bounds(**{"head_bytes": LIMIT} | bounds))
    task = asyncio.create_task(rig.server.serve([rig.socket]))
    try:
        yield rig
    finally:
        rig.app.gate.set()
        rig.server.should_exit = True
        await task
        rig.socket.close()


LONG = b"a" * LIMIT


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (b"GET /%s HTTP/1.1\r\n\r\n" % LONG, 414, "request: a target of"),
        (b"GET /" + LONG, 414, "request: a target of"),
        (b"GET /a HTTP/1.1\r\nX: %s\r\n\r\n" % LONG, 431, "headers: "),
        (b"GET /a HTTP/1.1\r\nX: " + LONG, 431, "headers: "),
        (b"GET /a HTTP/1.1\r\n" + b"a: b\r\n" * 400, 431, "headers: "),
        (POST + b"Transfer-Encoding: chunked\r\n" + b"a: b\r\n" * 400 + b"\r\n", 431, "headers: "),
        (b"nonsense\r\n\r\n", 400, "request: not HTTP/1.1: "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "request: not HTTP/1.1: "),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request: not HTTP/1.1: "),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 400, "request: its target cannot be read"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "request: not HTTP/1.1: "),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "request: "),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "request: not HTTP/1.1: "),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400, "request: not HTTP/1.1: "),
    ],
)
async def test_heads_that_are_refused(sent: bytes, status: int, words: str) -> None:
    async with serving() as rig:
        async with rig.connect() as c:
            c.send(sent)
            found, said = await c.refusal()
            assert (found, said[: len(words)]) == (status, words)
            assert len(said) < 150
        assert (rig.app.asked, rig.refused) == (0, [status])
        async with rig.connect() as c:
            c.send(GET)
            assert (await c.answer())[0] == 200


async def test_a_head_just_under_the_limit_passes_in_one_piece_and_in_many() -> None:
    async with serving() as rig, rig.connect() as c:
        head = b"GET /a HTTP/1.1\r\nX: %s\r\n\r\n" % (b"a" * (LIMIT - 60))
        c.send(head)
        assert (await c.answer())[0] == 200
        for at in range(0, len(head), 100):
            c.send(head[at : at + 100])
            await c.writer.drain()
            await asyncio.sleep(0)
        assert (await c.answer())[0] == 200
        # and a body of many times the limit behind it
        c.send(POST, b"Content-Length: %d\r\n\r\n" % (50 * LIMIT), b"x" * (50 * LIMIT), GET)
        assert (await c.answer())[2] == str(50 * LIMIT).encode()
        assert (await c.answer())[2] == b"0"


@pytest.mark.parametrize("tail", [b"1;" + b"x" * 600_000, b"0\r\n" + b"a: b\r\n" * 100_000])
async def test_what_trails_a_body_is_bounded(tail: bytes) -> None:
    async with serving() as rig, rig.connect() as c:
        c.send(POST, b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await rig.until(lambda: rig.app.asked)
        c.send(tail)
        status, words = await c.refusal()
        assert (status, words[:8]) == (431, "headers:")
        await rig.until(lambda: rig.app.told)
        assert rig.app.told == [(431, words)]


async def test_trailers_are_no_headers() -> None:
    async with serving() as rig, rig.connect() as c:
        c.send(POST, b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Evil: 1\r\n\r\n")
        assert (await c.answer())[2] == b"1"
        assert rig.app.trailers == [[b"host", b"transfer-encoding"]]


async def test_a_bad_chunk_is_refused_and_told_to_whoever_reads() -> None:
    async with serving() as rig, rig.connect() as c:
        c.send(POST, b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n")
        assert (await c.refusal())[0] == 400
        await rig.until(lambda: rig.app.told)
        assert rig.app.told[0][0] == 400
        assert rig.refused == []  # it is told there


async def test_an_upgrade_is_answered_as_if_nobody_had_asked() -> None:
    async with serving() as rig, rig.connect() as c:
        c.send(b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await c.answer())[0] == 200


async def test_what_follows_an_upgrade_is_the_next_request() -> None:
    async with serving() as rig, rig.connect() as c:
        rig.app.gate.clear()
        upgrade = b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        c.send(upgrade, upgrade, POST, b"Content-Length: 40\r\n\r\n")
        await rig.until(lambda: rig.app.asked)
        rig.app.gate.set()
        assert [(await c.answer())[2] for _ in range(2)] == [b"0", b"0"]
        c.send(GET.ljust(40))  # a body, and not another request
        assert (await c.answer())[2] == b"40"


# ---- time


@pytest.mark.parametrize("sent", [b"G", b"GET /a HTT", b"GET /a HTTP/1.1\r\nX: y\r\n"])
async def test_a_head_that_never_ends_is_given_up(sent: bytes) -> None:
    async with serving(head_s=10) as rig, rig.connect() as c:
        c.send(sent)
        await rig.until(lambda: any(not other.is_idle for other in rig.connections._open))
        rig.pass_time(9)
        assert rig.connections.count == 1
        rig.pass_time(11)
        assert await c.refusal() == (408, "head: not complete after 10 s, that is the limit")
        assert rig.refused == [408]


async def test_a_body_that_never_ends_is_given_up() -> None:
    async with serving(body_s=30) as rig, rig.connect() as c:
        c.send(POST, b"Content-Length: 10\r\n\r\nabc")
        await rig.until(lambda: rig.app.asked)
        rig.pass_time(29)
        rig.pass_time(31)
        words = "body: not complete after 30 s, that is the limit"
        assert await c.refusal() == (408, words)
        await rig.until(lambda: rig.app.told)
        assert rig.app.told == [(408, words)]


@pytest.mark.parametrize("first", [b"", GET])
async def test_an_idle_connection_is_closed(first: bytes) -> None:
    async with serving(idle_s=30) as rig, rig.connect() as c:
        c.send(first)
        if first:
            await c.answer()
        await rig.until(lambda: rig.connections.count == 1)
        rig.pass_time(29)
        rig.pass_time(31)
        assert await c.ended() == b""
        await rig.until(lambda: rig.connections.count == 0)


async def test_line_ends_do_not_keep_a_connection() -> None:
    async with serving(idle_s=30) as rig, rig.connect() as c:
        c.send(GET)
        await c.answer()
        c.send(b"\r\n")
        await asyncio.sleep(0.01)
        rig.pass_time(31)
        assert await c.ended() == b""


async def test_an_answer_that_nobody_takes_is_thrown_away() -> None:
    async with serving(body_s=30) as rig:
        rig.app.size = 64 << 20
        async with rig.connect() as c:
            c.send(GET)
            await rig.until(
                lambda: any(other.transport.get_write_buffer_size() for other in rig.connections._open)
            )
            await asyncio.sleep(0.2)  # until the kernel's buffers are full
            for seconds in (0, 29):
                rig.pass_time(seconds)
                await asyncio.sleep(0)
            assert rig.connections.count == 1
            rig.pass_time(31)
            await rig.until(lambda: rig.connections.count == 0)


async def test_who_waits_for_an_answer_is_not_idle() -> None:
    async with serving(idle_s=1, body_s=1, head_s=1) as rig, rig.connect() as c:
        rig.app.gate.clear()
        c.send(GET)
        await rig.until(lambda: rig.app.asked)
        rig.pass_time(100)
        rig.app.gate.set()
        assert (await c.answer())[0] == 200


async def test_the_watch_looks_by_itself() -> None:
    async with serving(head_s=0.01) as rig, rig.connect() as c:
        watch = asyncio.create_task(rig.connections.watch())
        c.send(b"GET")
        assert (await c.refusal())[0] == 408
        watch.cancel()


# ---- number


async def test_one_too_many_is_told_so_and_many_too_many_are_dropped() -> None:
    async with serving(connections=2) as rig, contextlib.AsyncExitStack() as stack:
        rig.app.gate.clear()
        busy = [await stack.enter_async_context(rig.connect()) for _ in range(2)]
        for c in busy:
            c.send(GET)
        await rig.until(lambda: rig.app.asked == 2)
        async with rig.connect() as c:
            c.send(GET)
            status, headers, body = await c.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body) == {"error": "connections: 2 are open, that is the limit"}
        for _ in range(MAX_TURNED_AWAY + 5):
            await stack.enter_async_context(rig.connect())
        await asyncio.sleep(0.05)
        assert rig.connections.count <= 2 + MAX_TURNED_AWAY
        rig.app.gate.set()
        for c in busy:
            assert (await c.answer())[0] == 200


async def test_who_asks_nothing_makes_room_for_who_does() -> None:
    async with serving(connections=3) as rig, rig.connect() as known, rig.connect() as silent:
        known.send(GET)
        await known.answer()
        await rig.until(lambda: rig.connections.count == 2)
        async with rig.connect() as slow, rig.connect() as fourth:
            slow.send(b"GET /a HTT")
            fourth.send(GET)
            assert (await fourth.answer())[0] == 200
            assert await silent.ended() == b""
            async with rig.connect() as fifth:
                fifth.send(GET)
                assert (await fifth.answer())[0] == 200
                assert await slow.ended() == b""
                async with rig.connect() as sixth:  # nobody is left who has not been served
                    assert (await sixth.answer())[0] == 503
            known.send(GET)
            assert (await known.answer())[0] == 200
        assert rig.displaced == 2


async def test_who_has_not_shown_who_it_is_makes_room_though_it_was_answered() -> None:
    async with serving(connections=2) as rig, rig.connect() as one, rig.connect() as other:
        for c in (one, other, one):
            c.send(HEALTH)
            assert (await c.answer())[0] == 200
        async with rig.connect() as device:
            device.send(GET)
            assert (await device.answer())[0] == 200
            assert await other.ended() == b"", "it has been waiting for longest"
            one.send(HEALTH)
            assert (await one.answer())[0] == 200
            async with rig.connect() as second:
                second.send(GET)
                assert (await second.answer())[0] == 200
                assert await one.ended() == b""


async def test_who_has_been_refused_holds_no_place() -> None:
    async with serving(connections=1) as rig, rig.connect() as wrong:
        wrong.send(b"x\r\n\r\n")
        assert (await wrong.answer())[0] == 400
        async with rig.connect() as device:
            device.send(GET)
            assert (await device.answer())[0] == 200
            assert rig.connections.count == 2, "it is still listened to"
        assert rig.displaced == 0


async def test_who_takes_no_answer_makes_room() -> None:
    async with serving(connections=1) as rig, rig.connect() as greedy:
        rig.app.size = 1 << 26
        greedy.send(HEALTH)
        await rig.until(lambda: rig.app.trailers)
        async with rig.connect() as device:
            rig.app.size = 0
            device.send(GET)
            assert (await device.answer())[0] == 200
        assert rig.displaced == 1


@pytest.mark.parametrize("first", [b"", HEALTH], ids=["at once", "behind another request"])
async def test_who_does_not_finish_its_request_makes_room(first: bytes) -> None:
    async with serving(connections=1) as rig, rig.connect() as slow:
        slow.send(first, POST, b"Content-Length: 9\r\n\r\nabc")
        await rig.until(lambda: rig.app.asked == 1 + bool(first))
        async with rig.connect() as device:
            device.send(GET)
            assert (await device.answer())[0] == 200
            assert (await slow.ended()).count(b"HTTP/1.1") == bool(first)
        assert rig.app.told == [None], "the application stops waiting for it"


async def test_who_is_being_answered_makes_no_room() -> None:
    async with serving(connections=1) as rig, rig.connect() as busy:
        busy.send(HEALTH)
        await busy.answer()
        rig.app.gate.clear()
        busy.send(HEALTH)
        await rig.until(lambda: rig.app.asked == 2)
        async with rig.connect() as device:
            assert (await device.answer())[0] == 503
        rig.app.gate.set()
        assert (await busy.answer())[0] == 200


async def test_the_log_says_now_and_then_who_made_room(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(connections=1) as rig, rig.connect() as first, rig.connect() as second:
        await first.ended()
        rig.pass_time(0)
        async with rig.connect() as third:
            await second.ended()
            rig.pass_time(1)
            third.send(GET)
            assert (await third.answer())[0] == 200
            rig.pass_time(61)
    lines = [record.getMessage() for record in caplog.records if "made room" in record.getMessage()]
    assert (
        lines
        == [
            "connections: more than 1, that is the limit: 1 that had not been served made room, "
            "0 new ones were told to come back"
        ]
        * 2
    )


async def test_requests_behind_each_other_do_not_pile_up() -> None:
    async with serving() as rig, rig.connect() as c:
        c.send(GET * MAX_PIPELINED)
        for _ in range(MAX_PIPELINED):
            assert (await c.answer())[0] == 200
        rig.app.gate.clear()
        c.send(GET * 5000)
        await rig.until(lambda: rig.app.asked > MAX_PIPELINED)
        rig.app.gate.set()
        told = await c.ended()
        assert told.count(b"HTTP/1.1 200") == MAX_PIPELINED + 1
        assert told.count(b"HTTP/1.1 ") == MAX_PIPELINED + 1


async def test_what_came_before_nonsense_is_answered() -> None:
    async with serving() as rig, rig.connect() as c:
        rig.app.gate.clear()
        c.send(GET, b"nonsense\r\n\r\n")
        await rig.until(lambda: rig.app.asked)
        rig.app.gate.set()
        assert (await c.answer())[0] == 200
        assert await c.ended() == b""


@pytest.mark.parametrize("tail", [b"1\r\na\r\nzz\r\n", b"1\r\na\r\n"])
async def test_a_body_that_is_refused_waits_for_the_answers_before_it(tail: bytes) -> None:
    async with serving(body_s=30.0) as rig, rig.connect() as c:
        rig.app.gate.clear()
        c.send(GET, GET, POST, b"Transfer-Encoding: chunked\r\n\r\n", tail)
        await rig.until(lambda: rig.app.asked)
        rig.pass_time(31.0)
        rig.app.gate.set()
        assert [(await c.answer())[0] for _ in range(2)] == [200, 200]
        status, headers, _ = await c.answer()
        assert (status, headers["connection"]) == (400 if b"zz" in tail else 408, "close")
        assert (rig.app.asked, rig.refused) == (2, [status])
        rig.pass_time(2.0)
        await rig.until(lambda: not rig.connections.count)
