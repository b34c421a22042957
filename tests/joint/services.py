"""The edge node and the cloud service as processes, each on free ports, with its log in a file."""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.joint.scrape import Samples

ROOT = Path(__file__).parents[2]
PREFIXES = {"edge_node": "EDGE_", "cloud_service": "CLOUD_"}
START_S = 30.0
STOP_S = 10.0
_PORTS = re.compile(r"http_port=(\d+) grpc_port=(\d+) metrics_port=(\d+)")


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> float:
    """Poll until `condition` holds, and say after how many seconds; fail the test when it never does."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > within_s:
            pytest.fail(f"not within {within_s} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - started


def free_port() -> int:
    """A port that nobody has, from below the range that outgoing connections take theirs from."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Service:
    """One process of one of the services; `settings` are named as its own, in lower case and without the
    prefix. It listens on free ports unless they say otherwise. `launcher` is a module that runs it, with its
    arguments."""

    def __init__(
        self, module: str, log: Path, settings: Mapping[str, object], launcher: Sequence[str] = ()
    ) -> None:
        self.name = log.stem
        free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "shutdown_ms": 3000}
        self._log = log
        prefixes = tuple(PREFIXES.values())
        environment = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
        for name, value in {**free, **settings}.items():
            environment[PREFIXES[module] + name.upper()] = str(value)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *launcher, module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """Everything it has said so far."""
        return self._log.read_text()

    @property
    def ports(self) -> tuple[int, int, int]:
        """HTTP, gRPC and metrics, as the log tells them; waits for that line."""
        lines: list[tuple[str, str, str]] = []

        def told() -> bool:
            lines[:] = _PORTS.findall(self.log)
            return bool(lines) or self.process.poll() is not None

        eventually(told, START_S, f"{self.name} tells its ports")
        if not lines:
            pytest.fail(f"{self.name} ended with status {self.process.returncode} before it listened")
        http, grpc, metrics = (int(port) for port in lines[0])
        return http, grpc, metrics

    def wait_ready(self) -> Self:
        """Return when `/readyz` says 200."""
        port = self.ports[0]
        eventually(lambda: get(port, "/readyz")[0] == 200, START_S, f"{self.name} is ready")
        return self

    def metrics(self) -> Samples:
        """What `/metrics` says now."""
        status, body = get(self.ports[2], "/metrics")
        assert status == 200
        return Samples(body)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it with SIGKILL, now."""
        self.process.kill()
        self.process.wait(STOP_S)

    def wait(self, within_s: float = STOP_S) -> int:
        """The exit status, which must come within `within_s` seconds."""
        return self.process.wait(within_s)

    def stop(self) -> int:
        """Ask it to end with SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()


class Services:
    """Starts services and ends them all, whatever the test does; fails when one had to be ended by force
    or wrote a stack trace into its log."""

    known: list[Service] = []  # noqa: RUF012 - of this process, for the report of a failed test

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Service] = []
        self._naming = threading.Lock()

    def start(
        self, module: str, name: str, settings: Mapping[str, object], launcher: Sequence[str] = ()
    ) -> Service:
        """Start a service without waiting; a second one of the same `name` gets a number to it. From any
        thread."""
        with self._naming:
            again = sum(service.name.partition("-")[0] == name for service in self._running)
            log = self._folder / f"{name}{f'-{again + 1}' if again else ''}.log"
            service = Service(module, log, settings, launcher)
            self._running.append(service)
        self.known.append(service)
        return service

    def edge(self, bundle: Path, cloud: str | int = "", name: str = "edge", **settings: object) -> Service:
        """An edge node with `bundle`, its cloud at an address or a local port; not waited for."""
        peer = f"127.0.0.1:{cloud}" if isinstance(cloud, int) else cloud
        return self.start("edge_node", name, {"bundles": bundle, "cloud": peer} | settings)

    def cloud(self, bundle: Path, name: str = "cloud", **settings: object) -> Service:
        """A cloud service with `bundle`; not waited for. One thread, so that two services fit two cores."""
        return self.start("cloud_service", name, {"bundles": bundle, "threads": 1} | settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        alive = [service for service in self._running if service.process.poll() is None]
        for service in alive:
            service.signal(signal.SIGCONT)  # it may have been stopped to play dead
            service.signal(signal.SIGTERM)
        statuses = {}
        for service in alive:
            try:
                statuses[service.name] = service.wait()
            except subprocess.TimeoutExpired:
                service.kill()
                statuses[service.name] = -signal.SIGKILL
        if error is None:
            assert set(statuses.values()) <= {0}, f"exit statuses {statuses}"
            for service in self._running:
                assert "Traceback" not in service.log, f"{service.name} wrote a stack trace:\n{service.log}"


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET on this machine; 0 and why when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def get_json(port: int, path: str) -> Any:
    """The body of a GET that must succeed."""
    status, body = get(port, path)
    assert status == 200, body
    return json.loads(body)
