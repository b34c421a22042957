"""Sends hostile cases to a service and judges every answer: what it says, how, and that there is one."""

import asyncio
import contextlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from tests.faults.mutate_http import Case

_PATIENCE_S = 10.0
_SHOWN = 400
MAX_WORDS = 1000
# What no stranger needs to know: paths, modules, reprs of objects, stack traces.
INTERNALS = re.compile(
    r"Traceback|site-packages|\.py\b|/home/|/usr/|/work/|/tmp/|<class |object at 0x|<built-in|simdjson|numpy|"
    r"edge_node|cloud_service|inference_core|onnxruntime|Errno|PIL\.|zlib\.|asyncio"
)


@dataclass
class Findings:
    """What became of the cases: how many had which status, and those that went wrong, each in a line."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    cases: int = 0

    def note(self, case: str, data: bytes, status: str, fault: str) -> None:
        """Count one answer; `fault` is empty for one as it should be."""
        self.statuses[status] += 1
        if fault:
            shown = data[:_SHOWN].hex() + ("..." if len(data) > _SHOWN else "")
            self.wrong.append(f"{case}: {fault}; {len(data)} bytes: {shown}")


@dataclass(frozen=True)
class Answer:
    """One answer over HTTP."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def fault(self) -> str:
        """What is wrong with it, whatever was asked; empty for nothing."""
        if self.status < 400:
            return ""
        if self.status == 503 and b"retry-after" not in self.headers:
            return "503 without Retry-After"
        if self.status >= 500 and self.status != 503:
            return f"{self.status}: {self.body[:200]!r}"
        try:
            words = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return f"{self.status} says nothing: {self.body[:200]!r}"
        return fault_of(words)


def fault_of(words: object) -> str:
    """What is wrong with the words of a refusal; empty for nothing."""
    if not isinstance(words, str) or not words:
        return f"a refusal without words: {words!r}"
    if len(words) > MAX_WORDS:
        return f"a refusal of {len(words)} characters: {words[:200]}"
    leak = INTERNALS.search(words)
    return f"a refusal that tells internals ({leak[0]}): {words[:300]}" if leak else ""


class Pace:
    """Lets so many pass in a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._began = time.monotonic()
        self._passed = 0

    async def wait(self) -> None:
        """Return when it is the caller's turn."""
        due = self._began + self._passed / self._rate
        self._passed += 1
        if (left := due - time.monotonic()) > 0:
            await asyncio.sleep(left)


class HttpAttack:
    """Sends cases to one port, each answer judged; connections are kept where the cases allow it."""

    def __init__(self, port: int, findings: Findings) -> None:
        self._port = port
        self.findings = findings

    async def send(
        self, cases: Iterable[tuple[int, Case]], *, rate: float = math.inf, lanes: int = 4
    ) -> None:
        """Send all cases, so many a second, over so many connections at a time."""
        left = iter(cases)
        pace = Pace(rate)

        async def lane() -> None:
            connection = None
            for number, case in left:
                await pace.wait()
                connection = await self._one(connection, number, case)
            if connection is not None:
                await _hang_up(connection[1])

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())

    async def _one(self, connection: "_Streams | None", number: int, case: Case) -> "_Streams | None":
        self.findings.cases += 1
        if not case.framed:
            streams = await asyncio.open_connection("127.0.0.1", self._port)
            await self._judge(number, case, lambda: _until_the_end(streams, case.data), 0)
            await _hang_up(streams[1])
            return connection
        fresh = connection is None
        streams = connection or await asyncio.open_connection("127.0.0.1", self._port)
        answers = await self._judge(number, case, lambda: _exchange(streams, case.data), 1 if fresh else 0)
        if answers and b"close" not in answers[-1].headers.get(b"connection", b""):
            return streams
        await _hang_up(streams[1])
        if not answers and not fresh:  # the server let go of the connection just then: once more
            return await self._one(None, number, case)
        return None

    async def _judge(
        self, number: int, case: Case, exchange: Callable[[], Awaitable[list[Answer]]], least: int
    ) -> list[Answer]:
        name = f"case {number} ({case.kind})"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answers = await exchange()
        except TimeoutError:
            self.findings.note(name, case.data, "silence", f"no answer in {_PATIENCE_S:g} s")
            return []
        except ValueError as error:
            self.findings.note(name, case.data, "nonsense", f"an answer that is not HTTP: {error}")
            return []
        if len(answers) < least:
            self.findings.note(name, case.data, "none", "the connection ended without an answer")
        for answer in answers:
            # A deadline that its sender has set, and that nobody can keep.
            late = answer.status == 504 and b"tandem_deadline_ms" in case.data
            self.findings.note(name, case.data, str(answer.status), "" if late else answer.fault)
        return answers


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _exchange(streams: _Streams, data: bytes) -> list[Answer]:
    """The answer to one request; none when the connection has ended."""
    reader, writer = streams
    try:
        writer.write(data)
        while True:
            answer = await _read(reader)
            if answer is None or answer.status >= 200:
                return [] if answer is None else [answer]
    except ConnectionError:
        return []


async def _until_the_end(streams: _Streams, data: bytes) -> list[Answer]:
    """Every answer that comes before the connection ends, once we have said that nothing more will come."""
    reader, writer = streams
    answers = []
    with contextlib.suppress(ConnectionError, OSError):
        writer.write(data)
        writer.write_eof()
        while (answer := await _read(reader)) is not None:
            answers.append(answer)
    return [answer for answer in answers if answer.status >= 200]


async def _read(reader: asyncio.StreamReader) -> Answer | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ValueError(f"an answer is cut off: {error.partial[:100]!r}") from error
        return None
    lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
    status = int(lines[0].split()[1])
    if status < 200:
        return Answer(status, headers, b"")
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return Answer(status, headers, body)
    return Answer(status, headers, await reader.readexactly(int(headers[b"content-length"])))


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
