"""A process under attack: what it weighs, what it holds open, what it has logged, and how the others fare."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.joint.device import Answers
from tests.joint.services import ROOT, Service

_PORTS = re.compile(r"http_port=(\d+) grpc_port=(\d+)")
_AT_RANK = 0.99
MOST_LINES = 20  # that an attack may add to a log, whatever its length


@dataclass(frozen=True)
class State:
    """What a process takes: resident bytes, open descriptors, lines in its log."""

    resident: int
    descriptors: int
    lines: int


def state(service: Service) -> State:
    """What `service` takes now; it must be alive."""
    status = service.process.poll()
    assert status is None, f"{service.name} has ended with status {status}"
    process = Path(f"/proc/{service.process.pid}")
    resident = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
    assert resident is not None
    return State(int(resident[1]) << 10, len(os.listdir(process / "fd")), len(service.log.splitlines()))  # noqa: PTH208


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def p99_ms(answers: Answers) -> float:
    """What 99 of 100 took at most, in milliseconds, less what the machine stood still."""
    took = sorted(answer.seconds * 1000 - answer.stalled_ms for answer in answers)
    return took[int(_AT_RANK * (len(took) - 1))]


@contextmanager
def naive() -> Iterator[tuple[int, int, int]]:
    """`tests.faults.naive` as a process: its id, and its ports of HTTP and gRPC."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.naive"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        ports = _PORTS.search(process.stdout.readline())
        assert ports is not None
        yield process.pid, int(ports[1]), int(ports[2])
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
