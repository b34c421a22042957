"""Attackers in a process of their own: what making and judging cases costs is neither the services' time nor
that of the devices, whose answers are timed meanwhile."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from tests.faults.attack import Findings, HttpAttack
from tests.faults.attack_grpc import GrpcAttack
from tests.faults.attack_silent import SilentAttack
from tests.faults.mutate_grpc import GrpcMutator
from tests.faults.mutate_http import HttpMutator

PACE = 400.0  # cases a second
CONNECTIONS = 100.0  # a second, where each case has one of its own
_PATIENCE_S = 10.0  # to end
WARM_UP = 4000  # cases of another seed, after which whatever is kept has been kept
Part = Callable[[range], Coroutine[Any, Any, None]]  # the cases are made before it begins


@dataclass(frozen=True)
class Ways:
    """How to send the cases of these numbers: hostile ones, requests in order, hostile ones for a start."""

    hostile: Part
    friendly: Part
    warm_up: Part
    findings: Findings


def by_http(port: int, mutator: HttpMutator) -> Ways:
    """At an HTTP port."""
    return _by_cases(HttpAttack(port, Findings()), mutator, 1)


def by_grpc(port: int, mutator: GrpcMutator) -> Ways:
    """At a gRPC port."""
    return _by_cases(GrpcAttack(port, Findings()), mutator, 2)


def _by_cases(attack: Any, mutator: Any, every: int) -> Ways:
    """With an attack and a mutator of one kind, of which one case in `every` is enough for a start."""
    other = mutator.reseeded()

    def hostile(numbers: range) -> Any:
        return attack.send([(n, mutator.case(n)) for n in numbers], rate=PACE)

    def friendly(numbers: range) -> Any:
        return attack.send([(n, mutator.valid(n)) for n in numbers], rate=PACE)

    def warm_up(numbers: range) -> Any:
        return attack.send((n, other.case(n)) for n in numbers[::every])

    return Ways(hostile, friendly, warm_up, attack.findings)


def by_frames(port: int, mutator: GrpcMutator) -> Ways:
    """At the HTTP/2 below gRPC."""
    attack = GrpcAttack(port, Findings())
    other = mutator.reseeded()

    def hostile(numbers: range) -> Coroutine[Any, Any, None]:
        return attack.frames([(n, mutator.frames(n)) for n in numbers], rate=CONNECTIONS)

    def friendly(numbers: range) -> Coroutine[Any, Any, None]:
        return attack.send([(n, mutator.valid(n)) for n in numbers], rate=CONNECTIONS)

    def warm_up(numbers: range) -> Coroutine[Any, Any, None]:
        return attack.frames((n, other.frames(n)) for n in numbers[::5])

    return Ways(hostile, friendly, warm_up, attack.findings)


def by_silence(port: int, pid: int, most: int) -> Ways:
    """At an HTTP port of the process `pid`, which is to hold `most` descriptors more than now."""
    attack = SilentAttack(port, pid, most, Findings())
    mutator = HttpMutator(0, predict=True)

    def friendly(numbers: range) -> Coroutine[Any, Any, None]:
        cases = [(n, mutator.valid(n)) for n in numbers[::2]]
        return HttpAttack(port, attack.findings).send(cases, rate=CONNECTIONS)

    return Ways(attack.hold, friendly, lambda numbers: attack.hold(numbers[::10]), attack.findings)


class Attacker:
    """Sends what it is told to, and returns when it has been answered; `findings` are those of all so far."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe
        self.findings = Findings()

    def hostile(self, numbers: range) -> float:
        """Send the hostile cases of these numbers; the monotonic time at which it began."""
        return self._send("hostile", numbers)

    def friendly(self, numbers: range) -> float:
        """Send requests in order, of these numbers; when it began."""
        return self._send("friendly", numbers)

    def warm_up(self) -> None:
        """Send many cases of another seed."""
        self._send("warm_up", range(WARM_UP))

    def _send(self, way: str, numbers: range) -> float:
        self._pipe.send((way, numbers))
        answer: tuple[float, Findings] = self._pipe.recv()
        began, self.findings = answer
        return began


@contextmanager
def attacker(ways: Callable[[], Ways]) -> Iterator[Attacker]:
    """One who uses these ways, as a process; when that ends early, `EOFError` says so."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_attack, args=(ways, theirs))
    process.start()
    theirs.close()
    try:
        with ours:
            yield Attacker(ours)
        process.join(_PATIENCE_S)
    finally:
        process.kill()  # where it is still at it
        process.join()


def _attack(make: Callable[[], Ways], pipe: "Connection[Any, Any]") -> None:
    ways = make()
    with contextlib.suppress(EOFError):  # nothing more to do
        while True:
            way, numbers = pipe.recv()
            work = getattr(ways, way)(numbers)
            began = time.monotonic()
            asyncio.run(work)
            pipe.send((began, ways.findings))
