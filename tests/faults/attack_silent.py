"""Clients that take their time: connections that say nothing, or never all that they have begun to say."""

import asyncio
import contextlib
import itertools

from tests.faults.attack import Findings
from tests.faults.watched import descriptors

HEAD = b"POST /v1/models/colors/predict HTTP/1.1\r\nHost: a\r\n"
SAID = (b"", b"P", HEAD, HEAD + b"Content-Length: 100\r\n\r\nabc", b"GET /readyz HTTP/1.1\r\n\r\n")
CLOSED_S = 2.5
_LOOK_S = 0.01


class SilentAttack:
    """Opens connections to one port of the process `pid`, all at once, and waits for it to close them.

    Findings: each that is still open after `CLOSED_S`, and a process that has more than `most` descriptors
    beyond those it had at first.
    """

    def __init__(self, port: int, pid: int, most: int, findings: Findings) -> None:
        self._port, self._pid, self._most = port, pid, most
        self._held = descriptors(pid)
        self._highest = 0
        self.findings = findings

    async def hold(self, numbers: range) -> None:
        """Open as many, and return when all have been closed, or should have been."""
        looking = asyncio.create_task(self._look())
        async with asyncio.TaskGroup() as group:
            for number, said in zip(numbers, itertools.cycle(SAID), strict=False):
                group.create_task(self._one(number, said))
        looking.cancel()
        if self._highest > self._most:
            self.findings.wrong.append(f"{self._highest} descriptors at a time, the limit is {self._most}")
        self.findings.statuses["open at most"] = self._highest

    async def _one(self, number: int, said: bytes) -> None:
        self.findings.cases += 1
        status, fault = "closed", ""
        writer = None
        try:
            async with asyncio.timeout(CLOSED_S):
                with contextlib.suppress(ConnectionError):  # so it can be closed, too
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.write(said)
                    while await reader.read(1 << 16):
                        pass
        except TimeoutError:
            status, fault = "still open", f"open after {CLOSED_S:g} s"
        if writer is not None:
            writer.close()
        self.findings.note(f"connection {number}", said, status, fault)

    async def _look(self) -> None:
        while True:
            self._highest = max(self._highest, descriptors(self._pid) - self._held)
            await asyncio.sleep(_LOOK_S)
