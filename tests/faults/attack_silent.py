"""Clients that take their time: connections that say nothing, nonsense, or never all that they have begun
to say; and beside them newcomers who have something to ask."""

import asyncio
import contextlib
import itertools

from tests.faults.attack import Findings
from tests.faults.watched import descriptors

HEAD = b"POST /v1/models/colors/predict HTTP/1.1\r\nHost: a\r\n"
SAID = (
    b"",
    b"P",
    HEAD,
    HEAD + b"Content-Length: 100\r\n\r\nabc",
    b"GET /readyz HTTP/1.1\r\n\r\n",
    b"x\r\n\r\n",
)
ASKED = b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CLOSED_S = 2.5
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_LOOK_S = 0.01
_NEWCOMER_S = 0.05


class SilentAttack:
    """Opens connections to one port of the process `pid`, all at once, and waits for it to close them.

    Findings: each that is still open after `CLOSED_S`, a process that has more than `most` descriptors beyond
    those it had at first, and each newcomer that is not answered while they are there.
    """

    def __init__(self, port: int, pid: int, most: int, findings: Findings) -> None:
        self._port, self._pid, self._most = port, pid, most
        self._held = descriptors(pid)
        self._highest = 0
        self.findings = findings

    async def hold(self, numbers: range) -> None:
        """Open as many, and return when all have been closed, or should have been."""
        looking = asyncio.create_task(self._look())
        opened = await asyncio.gather(*(self._open(said) for _, said in zip(numbers, itertools.cycle(SAID))))
        asking = asyncio.create_task(self._ask())
        await asyncio.gather(*map(self._wait, numbers, itertools.cycle(SAID), opened))
        for task in (looking, asking):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._highest > self._most:
            self.findings.wrong.append(f"{self._highest} descriptors at a time, the limit is {self._most}")
        self.findings.statuses["open at most"] = self._highest

    async def _open(self, said: bytes) -> _Streams | None:
        with contextlib.suppress(ConnectionError):  # so it can be closed, too
            streams = await asyncio.open_connection("127.0.0.1", self._port)
            streams[1].write(said)
            return streams
        return None

    async def _wait(self, number: int, said: bytes, streams: _Streams | None) -> None:
        self.findings.cases += 1
        status, fault = "closed", ""
        if streams is not None:
            try:
                async with asyncio.timeout(CLOSED_S):
                    with contextlib.suppress(ConnectionError):
                        while await streams[0].read(1 << 16):
                            pass
            except TimeoutError:
                status, fault = "still open", f"open after {CLOSED_S:g} s"
            streams[1].close()
        self.findings.note(f"connection {number}", said, status, fault)

    async def _ask(self) -> None:
        """Come anew and ask, one after the other, until cancelled."""
        while True:
            answer = b""
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(ASKED)
                answer = await reader.read()
                writer.close()
            found = answer.startswith(b"HTTP/1.1 200 ")
            fault = "" if found else f"is answered {answer[:80]!r}"
            self.findings.note("a newcomer", ASKED, "newcomers let in" if found else "kept out", fault)
            await asyncio.sleep(_NEWCOMER_S)

    async def _look(self) -> None:
        while True:
            self._highest = max(self._highest, descriptors(self._pid) - self._held)
            await asyncio.sleep(_LOOK_S)
