"""Devices: one that asks now and then, and many that go on asking whether or not they are answered."""

import asyncio
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import uvloop

from tests.joint.canary import CANARY
from tests.joint.services import eventually

GRACE_S = 0.05  # what an answer may take beyond its deadline
_GIVE_UP_S = 10.0
_IDLE_S = 2.0


@dataclass(frozen=True)
class Answer:
    """What became of one request, the `number`th of its load. `status` is 0 when there was no answer, and
    `error` then says why."""

    sent: float
    seconds: float
    deadline_s: float
    status: int
    body: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    number: int = 0

    @property
    def source(self) -> str:
        """Whose answer it is."""
        return str(self.body.get("source", self.error))

    @property
    def reason(self) -> str:
        """Why it is theirs."""
        return str(self.body.get("reason", self.error))

    @property
    def label(self) -> str:
        """The winning class."""
        return str(self.body["prediction"]["label"])

    @property
    def who(self) -> tuple[str, str]:
        """Source and reason."""
        return self.source, self.reason

    @property
    def late_ms(self) -> float:
        """Milliseconds after the deadline; negative when there was time left."""
        return (self.seconds - self.deadline_s) * 1000

    @property
    def stalled_ms(self) -> float:
        """Milliseconds at which the machine stood still on the way to this answer."""
        return CANARY.stalled_s(self.sent, self.sent + self.seconds) * 1000


class Answers(tuple[Answer, ...]):
    """Answers of one stretch of time, in the order they came."""

    __slots__ = ()

    def of(self, source: str) -> "Answers":
        """Those from this source."""
        return Answers(a for a in self if a.source == source)

    def sent_in(self, start: float, end: float = float("inf")) -> "Answers":
        """Those to requests that were sent in this stretch of time."""
        return Answers(a for a in self if start <= a.sent < end)

    @property
    def who(self) -> Counter[tuple[str, str]]:
        """How many came from each source for each reason."""
        return Counter(a.who for a in self)

    @property
    def reasons(self) -> set[str]:
        """Every reason given."""
        return {a.reason for a in self}

    @property
    def p50_ms(self) -> float:
        """The median time to the answer."""
        return median(a.seconds for a in self) * 1000

    def latest_ms(self) -> float:
        """After checking that every request was answered with 200 and no later than its deadline and the
        grace: how far the latest was from its deadline, in milliseconds.

        An answer may be later by as much as the machine stood still while it was asked for.
        """
        assert self, "nothing was asked"
        failed = [a for a in self if a.status != 200]
        assert not failed, f"{len(failed)} of {len(self)} failed, the first: {failed[0]}"
        worst = max(self, key=lambda a: a.late_ms)
        late = [a for a in self if a.late_ms - a.stalled_ms > GRACE_S * 1000]
        assert not late, f"{len(late)} of {len(self)} too late, by {worst.late_ms:.0f} ms at worst: {late[0]}"
        return worst.late_ms


class Device:
    """Asks an edge node on this machine, one request at a time."""

    def __init__(self, port: int, model: str = "colors") -> None:
        self._port = port
        self._model = model

    def predict(self, body: bytes, kind: str = "image/png", **query: object) -> Answer:
        """One prediction; `query` as the interface names it."""
        deadline_s = float(str(query.get("deadline_ms", 200))) / 1000
        path = f"/v1/models/{self._model}/predict"
        sent = time.monotonic()
        status, _, answer = self.post(f"{path}?{urlencode(query)}", body, {"Content-Type": kind})
        return Answer(sent, time.monotonic() - sent, deadline_s, status, json.loads(answer))

    def post(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_GIVE_UP_S)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


class Load:
    """Many devices: requests go out at a steady rate, whatever has become of those before.

    Runs from entering to leaving its block, and leaves when every request has its answer. `bodies`, each PNG
    or JPEG, take turns where they are a sequence; else there must be enough of them.
    """

    def __init__(
        self, port: int, bodies: Iterable[bytes], *, rate: float, deadline_ms: int, **query: object
    ) -> None:
        self._port = port
        self._deadline_s = deadline_ms / 1000
        self._rate = rate
        path = "/v1/models/colors/predict?" + urlencode({"deadline_ms": deadline_ms, **query})
        encoded = (_encode(path, body) for body in bodies)
        self._requests = itertools.cycle(list(encoded)) if isinstance(bodies, Sequence) else encoded
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="load")
        self._done: list[Answer] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Ask no more; what has been asked is still answered."""
        self._stopping.set()

    @property
    def answers(self) -> Answers:
        """Those that have come so far."""
        return Answers(self._done)

    def go_on(self, seconds: float) -> Answers:
        """Let it go on for so long; the answers of that time."""
        start = time.monotonic()
        eventually(lambda: time.monotonic() - start > seconds, seconds + 1, "the time passes")
        return self.answers.sent_in(start)

    def resumed_after(self, since: float, within_s: float = 10.0) -> float:
        """Seconds from `since` to the cloud's first answer to a request that was sent later."""
        eventually(lambda: bool(self.answers.sent_in(since).of("cloud")), within_s, "the cloud answers")
        return min(a.sent + a.seconds for a in self.answers.sent_in(since).of("cloud")) - since

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(self._requests):
                await asyncio.sleep(max(0.0, started + number / self._rate - time.monotonic()))
                if self._stopping.is_set():
                    break
                group.create_task(self._ask(request, number))
        for _, _, writer in self._idle:
            await _hang_up(writer)

    async def _ask(self, request: bytes, number: int) -> None:
        sent = time.monotonic()
        status, error = 0, ""
        body: dict[str, Any] = {}
        writer = None
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                reader, writer = await self._connection()
                writer.write(request)
                status, body = await _read(reader)
        except (OSError, EOFError) as failure:
            error = type(failure).__name__
        now = time.monotonic()
        self._done.append(Answer(sent, now - sent, self._deadline_s, status, body, error, number))
        if writer is not None:
            if error:
                await _hang_up(writer)
            else:
                self._idle.append((now, reader, writer))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An open connection; one that has been idle for long may be closing, so it is not used."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < _IDLE_S and not reader.at_eof():
                return reader, writer
            await _hang_up(writer)
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        return


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    first, *fields = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length = next(int(f.partition(b":")[2]) for f in fields if f.lower().startswith(b"content-length:"))
    return int(first.split()[1]), json.loads(await reader.readexactly(length))


def _encode(path: str, body: bytes) -> bytes:
    kind = "image/jpeg" if body.startswith(b"\xff\xd8") else "image/png"
    fields = {"Host": "edge", "Content-Type": kind, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
