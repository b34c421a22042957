"""Tandem's services as child processes: on free ports, killed and started again, never left behind."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Self

import httpx2

HOST = "127.0.0.1"
START_S = 60.0  # from starting a service to its being ready
STOP_S = 5.0  # from SIGTERM to SIGKILL
_POLL_S = 0.02
_LAST_LINES = 12
_LOG_BYTES = 1 << 16  # of the end of the log
_PORTS = re.compile(rb"\b(http|grpc|metrics)_port=(\d+)")


class ServiceFailed(Exception):
    """A service died, or was not ready in time; the message ends with the last lines of its log."""


class Service:
    """One service: `async with` starts it, waits until it is ready, and stops it whatever happens.

    It listens on 127.0.0.1. Its ports are free ones at the first start and the same ones at every later.
    """

    def __init__(self, module: str, prefix: str, settings: Mapping[str, str]) -> None:
        """`python -m module`, told its settings as `<prefix>_<name>` beside what the environment says."""
        self.module = module
        self._prefix = prefix
        self._settings = settings
        self._ports = {"http": 0, "grpc": 0, "metrics": 0}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The process's id, None while it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """Where its HTTP interface is."""
        return f"http://{HOST}:{self._ports['http']}"

    @property
    def grpc_target(self) -> str:
        """Where its gRPC interface is: `host:port`."""
        return f"{HOST}:{self._ports['grpc']}"

    async def start(self) -> None:
        """Start it and return when it is ready. Raises `ServiceFailed`; then nothing of it is left."""
        if self.pid is not None:
            raise RuntimeError(f"{self.module} is running already")
        self._spawn()
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise

    def kill(self) -> None:
        """End it with SIGKILL, as a crash or a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._close_log()

    async def stop(self) -> None:
        """End it with SIGTERM, or with SIGKILL when it takes longer than `STOP_S` seconds."""
        try:
            if self._process is not None and self.pid is not None:
                self._process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(self._process.wait, STOP_S)
        finally:
            self.kill()

    def _spawn(self) -> None:
        ports = {f"{name.upper()}_PORT": str(port) for name, port in self._ports.items()}
        # INFO: the ports are said at that level
        settings = {"HOST": HOST, "LOG_LEVEL": "INFO", **ports, **self._settings}
        overrides = {f"{self._prefix}_{name}": value for name, value in settings.items()}
        # A file and not a pipe: a pipe that nobody reads would stop the service.
        self._close_log()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
            [sys.executable, "-m", self.module],
            env={**os.environ, **overrides},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._find_ports():
            await self._pause(deadline)
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=1.0) as client:
            while not await _is_ready(client):
                await self._pause(deadline)

    def _find_ports(self) -> bool:
        """Whether the service has said where it listens."""
        found = {name.decode(): int(port) for name, port in _PORTS.findall(self._read_log())}
        if found.keys() >= self._ports.keys():
            self._ports = found
            return True
        return False

    async def _pause(self, deadline: float) -> None:
        """Wait a moment for the service. Raises `ServiceFailed` when it has died or time is up."""
        if self._process is not None and self._process.poll() is not None:
            raise ServiceFailed(f"{self.module} ended with status {self._process.returncode}{self._tail()}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{self.module} was not ready within {START_S:.0f} s{self._tail()}")
        await asyncio.sleep(_POLL_S)

    def _tail(self) -> str:
        lines = self._read_log().decode(errors="replace").splitlines()[-_LAST_LINES:]
        return "".join(["; the last of its log:", *(f"\n  {line}" for line in lines)]) if lines else ""

    def _read_log(self) -> bytes:
        if self._log is None:
            return b""
        # pread leaves alone the position, which the service writes at
        descriptor = self._log.fileno()
        return os.pread(descriptor, _LOG_BYTES, max(0, os.fstat(descriptor).st_size - _LOG_BYTES))

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx2.TransportError:
        return False
