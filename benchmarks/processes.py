"""Processes for measuring: each on one core, stopped and started at will, its memory read."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
_STOP_S = 5.0
_LAST = 1500  # characters of a log that failed
# Keeps a core from going to sleep; it runs only where nothing else wants to.
_AWAKE = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"


class Failed(Exception):
    """A server could not be started; the message is its reason, or the end of its log."""


@dataclass(frozen=True)
class Cores:
    """Which core the servers get and which the client; the same one where there is only one."""

    server: int
    client: int

    @classmethod
    def of_this_machine(cls) -> Self:
        """The first two cores that this process may use."""
        first, *rest = sorted(os.sched_getaffinity(0))
        return cls(first, rest[0] if rest else first)


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and what it starts meanwhile, runs on `core` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def awake(core: int) -> Iterator[None]:
    """`core` never sleeps meanwhile: a process of idle priority runs there, and gives way at once."""
    with pinned(core):
        process = subprocess.Popen([sys.executable, "-c", _AWAKE])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody has, from below the range that outgoing connections take theirs from."""
    while True:
        port = random.randint(20_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """A program on one core, in a session of its own, with its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        core: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        talks: bool = False,
    ) -> None:
        """`environment` is put over this process's own; with `talks` its input and output are pipes."""
        self._log = log
        self.started = time.monotonic()
        with pinned(core), log.open("wb") as output:
            self.popen = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else output,
                stderr=output,
                start_new_session=True,
                text=True,
            )

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-_LAST:].strip()

    @property
    def peak_bytes(self) -> int:
        """The most memory that each process of its tree has held (VmHWM), added up."""
        return sum(_peak(pid) for pid in self._tree())

    def freeze(self) -> None:
        """It and all below it stand still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """They go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and all below it."""
        self.thaw()
        tree = self._tree()
        self.popen.terminate()
        try:
            self.popen.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()
        for pid in tree[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _tree(self) -> list[int]:
        """It, then its descendants."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                text = path.read_text()
                parent = int(text.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.parent.name))
        found = [self.popen.pid]
        for pid in found:
            found += children.get(pid, [])
        return found


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
