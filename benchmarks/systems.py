"""What is measured: servers, the raw loop and a server that does nothing, each a process on its core."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.http1 import connect
from benchmarks.load import Broken
from benchmarks.models import Served
from benchmarks.networks import INPUT
from benchmarks.processes import Failed, Process, free_port
from benchmarks.ways import Way

START_S = 60.0


class Server:
    """A server under test: its process, and the ways to ask it. It is frozen save between `turn`'s ends."""

    def __init__(
        self, name: str, process: Process, ways: Sequence[Way], http_port: int, grpc_port: int
    ) -> None:
        """Wait until it answers the first of `ways` rightly. Raises `Failed` when it never does."""
        self.name = name
        self.ways = tuple(ways)
        self._process = process
        self._ports = {False: http_port, True: grpc_port}
        self.ready_s = self._wait()
        process.freeze()

    def port(self, way: Way) -> int:
        """The port that `way` is for."""
        return self._ports[way.is_grpc]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """It runs meanwhile."""
        self._process.thaw()
        try:
            yield
        finally:
            self._process.freeze()

    @property
    def peak_bytes(self) -> int:
        """The most memory that its processes have held, added up."""
        return self._process.peak_bytes

    def stop(self) -> None:
        """End it."""
        self._process.stop()

    def _wait(self) -> float:
        """Seconds from its start to its first right answer."""
        started = self._process.started
        why = "no answer"
        while time.monotonic() - started < START_S:
            if self._process.popen.poll() is not None:
                raise Failed(
                    f"{self.name} ended with status {self._process.popen.returncode}: {self._process.log}"
                )
            way = self.ways[0]
            try:
                answered = _ask_once(way, self.port(way))
            except Broken as error:
                why = str(error)
                time.sleep(0.005)
                continue
            if answered is None:
                return time.monotonic() - started
            why = answered
            time.sleep(0.005)
        self._process.stop()
        raise Failed(f"{self.name} was not ready within {START_S:.0f} s ({why}): {self._process.log}")


def _ask_once(way: Way, port: int) -> str | None:
    """What is wrong with the answer to one request, None when nothing is. Raises `Broken`."""
    connection = way.dial(port)
    try:
        connection.send()
        end = time.monotonic() + START_S
        while (reply := connection.advance()) is None:
            if time.monotonic() > end:
                raise Broken("no answer in time")
            time.sleep(0.0005)
    finally:
        connection.close()
    return way.check(reply) if reply.ok else f"{reply.status} {reply.body[:200]!r}"


class RawLoop:
    """The yardstick for one model: `benchmarks.raw_loop` as a process on the servers' core."""

    def __init__(self, model: Served, core: int, folder: Path) -> None:
        """Start it and wait until it is warm."""
        sample = folder / f"{model.name}.npy"
        np.save(sample, model.sample, allow_pickle=False)
        command = [sys.executable, "-m", "benchmarks.raw_loop", str(model.file), str(sample), INPUT]
        self._process = Process(command, core, folder / f"raw-{model.name}.log", talks=True)
        if self._line() != "ready":
            raise Failed(f"the raw loop did not start: {self._process.log}")
        self._process.freeze()

    def measure(self, seconds: float) -> dict[str, float]:
        """Runs per second, and a run's microseconds: `per_s`, `p50_us`, `p99_us`."""
        self._process.thaw()
        stdin = self._process.popen.stdin
        if stdin is None:
            raise RuntimeError("the raw loop was started without pipes")
        stdin.write(f"{seconds}\n")
        stdin.flush()
        line = self._line()
        self._process.freeze()
        if not line:
            raise Failed(f"the raw loop ended: {self._process.log}")
        return {str(key): float(value) for key, value in json.loads(line).items()}

    def stop(self) -> None:
        """End it."""
        self._process.stop()

    def _line(self) -> str:
        stdout = self._process.popen.stdout
        return stdout.readline().strip() if stdout else ""


def edge(
    name: str, bundle: Path, ways: Sequence[Way], core: int, log: Path, settings: Mapping[str, object]
) -> Server:
    """Tandem's edge node with one bundle, on its own: one worker, one thread, all else as it comes.

    `settings` are put over these, named as its own, in lower case and without the prefix.
    """
    ports = {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port()}
    fixed = {"bundles": bundle, "cloud": "", "mode": "edge", "workers": 1, "deadline_ms": 60_000}
    chosen = {f"EDGE_{name.upper()}": str(value) for name, value in {**ports, **fixed, **settings}.items()}
    process = Process([sys.executable, "-m", "edge_node"], core, log, chosen)
    return Server(name, process, ways, ports["http_port"], ports["grpc_port"])


def floor(name: str, model: Served, ways: Sequence[Way], core: int, log: Path) -> Server:
    """The libraries that Tandem's servers stand on, with nothing of Tandem's around the run."""
    http_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "benchmarks.floor", str(model.file), str(http_port), str(grpc_port)]
    return Server(name, Process(command, core, log), ways, http_port, grpc_port)


@contextmanager
def noop(kind: str, core: int, log: Path) -> Iterator[int]:
    """The server that does nothing, `http` or `grpc`, listens meanwhile on the port that is given."""
    port = free_port()
    process = Process([sys.executable, "-m", "benchmarks.noop", kind, str(port)], core, log)
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                connect(port).close()
            except Broken as error:
                if time.monotonic() > end or process.popen.poll() is not None:
                    raise Failed(f"the server that does nothing: {error}; {process.log}") from error
                time.sleep(0.01)
            else:
                break
        yield port
    finally:
        process.stop()
