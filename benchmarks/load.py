"""The load generator: many connections, one request at a time on each, driven by one thread.

Closed loop: every client sends its next request as soon as it has its answer. Open loop: requests are due at
times set beforehand, and each latency counts from the time its request was due, so that a server that stalls
is charged for all who would have come meanwhile (coordinated omission is avoided). It polls without
sleeping where it may, so it wants a core of its own.
"""

import gc
import os
import select
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_STALLED_S = 20.0  # a server that answers nobody for so long is broken
_KEEP_EVERY = 8
_KEPT = 256


class Broken(Exception):
    """A connection ended, or what came over it was not the protocol; the message says how."""


@dataclass(slots=True)
class Reply:
    """One answer. `ok` is what the protocol calls success, `status` its status in words when it is not."""

    ok: bool
    status: str
    head: bytes
    body: bytes


class Connection(Protocol):
    """One connection with at most one request on its way; nothing here blocks save `close`."""

    def fileno(self) -> int:
        """The socket, for polling."""

    @property
    def wants_to_write(self) -> bool:
        """Whether part of the request could not be sent yet."""

    def send(self) -> None:
        """Begin the next request. Raises `Broken`."""

    def advance(self) -> Reply | None:
        """Write and read what is possible; the answer once it is complete. Raises `Broken`."""

    def close(self) -> None:
        """End it."""


Dial = Callable[[], Connection]
Check = Callable[[Reply], str | None]  # what is wrong with an answer whose status is fine


@dataclass
class Run:
    """What happened during one measurement of `seconds`.

    `latencies_ns` are of the requests that were answered well within it, by the clock of the client.
    `refused` had another status than success, `wrong` a wrong content, `broken` a connection that ended;
    `unanswered` were due in an open loop and had no answer when it was given up. `examples` holds the
    first reason of each kind, `kept` every eighth good answer, up to 256 of them.
    """

    seconds: float
    latencies_ns: "array[int]" = field(default_factory=lambda: array("q"))
    refused: int = 0
    wrong: int = 0
    broken: int = 0
    unanswered: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    kept: list[Reply] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Requests that were not answered well."""
        return self.refused + self.wrong + self.broken + self.unanswered

    @property
    def per_s(self) -> float:
        """Requests answered well per second."""
        return len(self.latencies_ns) / self.seconds

    def percentile_us(self, share: float) -> float:
        """The latency, in microseconds, that `share` percent stayed at or under; NaN when none came."""
        if not self.latencies_ns:
            return float("nan")
        return float(np.percentile(np.frombuffer(self.latencies_ns, np.int64), share)) / 1000

    def blame(self, kind: str, why: str) -> None:
        """Remember the first reason of its kind."""
        self.examples.setdefault(kind, why)


def closed_loop(dial: Dial, check: Check, *, clients: int, seconds: float, warm_up_s: float = 0.3) -> Run:
    """The measurement with `clients` connections that always have a request on its way.

    Counted are the answers that come in the `seconds` after `warm_up_s`. Requests still on their way at
    the end are waited for, not counted. Raises `Broken` when nothing is answered for 20 s or a server that
    was lost does not take connections any more.
    """
    load = _Load(dial, check, clients)
    with _undisturbed():
        try:
            load.start_all()
            load.run = Run(warm_up_s)
            load.until(time.perf_counter_ns() + int(warm_up_s * 1e9))
            load.run = Run(seconds)
            load.until(time.perf_counter_ns() + int(seconds * 1e9))
            measured, load.run = load.run, Run(0)
            load.drain()
        finally:
            load.close()
    return measured


def open_loop(
    dial: Dial,
    check: Check,
    *,
    due_s: Sequence[float] | NDArray[np.float64],
    clients: int,
    patience_s: float = 5.0,
) -> Run:
    """The measurement of requests that are due `due_s` seconds after its start, ascending.

    At most `clients` are on their way at a time; what is due beyond that waits here, and its latency
    counts the wait. What has no answer `patience_s` after the last was due is unanswered.
    """
    load = _Load(dial, check, clients)
    load.run = Run(float(due_s[-1]) if len(due_s) else 0.0)
    with _undisturbed():
        try:
            load.on_schedule([int(due * 1e9) for due in due_s], int(patience_s * 1e9))
        finally:
            load.close()
    return load.run


def fixed_rate(per_s: float, seconds: float) -> NDArray[np.float64]:
    """When requests are due that come `per_s` a second, evenly: float64 seconds."""
    return np.arange(1, int(per_s * seconds) + 1) / per_s


def poisson(per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """When requests are due that come independently, `per_s` a second on average: float64 seconds."""
    gaps = np.random.default_rng(seed).exponential(1 / per_s, int(per_s * seconds * 1.5) + 100)
    due = np.cumsum(gaps)
    return due[due <= seconds]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The garbage collector waits until it is over."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Load:
    """The connections of one measurement, and when the request on each was sent or due."""

    def __init__(self, dial: Dial, check: Check, clients: int) -> None:
        self.run = Run(0)
        self._dial = dial
        self._check = check
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._since: dict[int, int] = {}  # by socket: only those with a request on its way
        self._writing: set[int] = set()
        self._replies = 0
        # On a machine with one core the server needs it while we wait.
        self._poll_s = 0 if (os.cpu_count() or 1) > 1 else 0.001
        for _ in range(clients):
            self._connect()

    def start_all(self) -> None:
        """Send on every connection that is idle."""
        for fd in [fd for fd in self._open if fd not in self._since]:
            self._send(fd, time.perf_counter_ns())

    def until(self, end_ns: int) -> None:
        """Keep every connection busy until then."""
        quiet_since = time.perf_counter_ns()
        while (now := time.perf_counter_ns()) < end_ns:
            for fd, _ in self._epoll.poll(self._poll_s):
                reply = self._receive(fd)
                if reply is None:
                    continue
                now = quiet_since = time.perf_counter_ns()
                taken = now - self._since.pop(fd)
                self._send(fd, now)  # first, so that the server need not wait for the check
                self._count(reply, taken)
            for fd in [fd for fd in self._open if fd not in self._since]:  # made anew
                self._send(fd, now)
            if now - quiet_since > _STALLED_S * 1e9:
                raise Broken(f"no answer on any of {len(self._open)} connections for {_STALLED_S:.0f} s")

    def drain(self) -> None:
        """Wait for the answers that are on their way."""
        end = time.perf_counter_ns() + int(_STALLED_S * 1e9)
        while self._since and time.perf_counter_ns() < end:
            for fd, _ in self._epoll.poll(self._poll_s):
                if self._receive(fd) is not None:
                    self._since.pop(fd)

    def on_schedule(self, due_ns: list[int], patience_ns: int) -> None:
        """Send what is due on whatever connection is idle, until all are answered or patience ends."""
        start = time.perf_counter_ns()
        waiting = deque(due_ns)
        end = start + (due_ns[-1] if due_ns else 0) + patience_ns
        idle = list(self._open)
        while waiting or self._since:
            now = time.perf_counter_ns()
            if now > end:
                break
            while idle and waiting and start + waiting[0] <= now:
                self._send(idle.pop(), start + waiting.popleft())
            for fd, _ in self._epoll.poll(self._poll_s):
                reply = self._receive(fd)
                if reply is not None:
                    self._count(reply, time.perf_counter_ns() - self._since.pop(fd))
            idle = [fd for fd in self._open if fd not in self._since]
        self.run.unanswered = len(waiting) + len(self._since)

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._epoll.close()

    def _connect(self) -> None:
        connection = self._dial()
        self._open[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _send(self, fd: int, since_ns: int) -> None:
        self._since[fd] = since_ns
        try:
            self._open[fd].send()
        except Broken as error:
            self._lose(fd, error)
        else:
            self._watch(fd)

    def _receive(self, fd: int) -> Reply | None:
        try:
            reply = self._open[fd].advance()
        except Broken as error:
            self._lose(fd, error)
            return None
        self._watch(fd)
        return reply

    def _watch(self, fd: int) -> None:
        """Ask to be told when there is room to write only while there is something to be written."""
        wants = self._open[fd].wants_to_write
        if wants != (fd in self._writing):
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wants else 0))
            (self._writing.add if wants else self._writing.remove)(fd)

    def _lose(self, fd: int, error: Broken) -> None:
        """Count the request that was on its way, and connect anew."""
        if fd in self._since:
            self.run.broken += 1
            self.run.blame("broken", str(error))
        self._since.pop(fd, None)
        self._writing.discard(fd)
        self._epoll.unregister(fd)
        self._open.pop(fd).close()
        self._connect()

    def _count(self, reply: Reply, taken_ns: int) -> None:
        if not reply.ok:
            self.run.refused += 1
            self.run.blame("refused", f"{reply.status} {reply.body[:200]!r}")
            return
        wrong = self._check(reply)
        if wrong is not None:
            self.run.wrong += 1
            self.run.blame("wrong", wrong)
            return
        self.run.latencies_ns.append(taken_ns)
        self._replies += 1
        if self._replies % _KEEP_EVERY == 0 and len(self.run.kept) < _KEPT:
            self.run.kept.append(reply)
