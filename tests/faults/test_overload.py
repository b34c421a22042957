"""More requests than there is time for: what is let in is in time, the rest is told so at once, and when it
is over it is over."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import pytest

from tests.bundles import UNSURE, picture, write_bundle
from tests.faults.grpc_load import GrpcLoad
from tests.faults.plain_client import MODEL_INFER, Call, ask
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.device import Answers, Device, Load
from tests.joint.services import Service, Services, eventually

WORK = 34  # about 10 ms for one run
SLO_MS = 200
SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"
GOODPUT = 0.9  # of the peak
REFUSED_MS = 5.0
SLOWER, SLOWER_MS = 1.1, 1.0  # or no more than nothing takes, where the machine is that busy
IDLE_S = 0.02
NORMAL_S = 10.0
QUIET_S, GIVE_UP_S = 1.5, 12.0  # so long without a failure is normal; so long a twin is waited for
PEAK_S = 2.0
CLIENTS = 6
IMAGE = picture(UNSURE)
# One run answers one request, so that the peak is what the model says, and the load can be ten times that.
EDGE = {"workers": 1, "max_batch": 1, "cloud": "", "deadline_ms": SLO_MS}
CLOUD = {"threads": 1, "max_batch_size": 1}
Ask = Callable[[], bool]


@dataclass(frozen=True)
class Side:
    """One of the services: how it is started, asked by one who waits for each answer, asked for nothing, and
    put under a load; and what it is told to do without protection."""

    start: Callable[..., Service]
    asker: Callable[[Service], AbstractContextManager[Ask]]
    idler: Callable[[Service], AbstractContextManager[Ask]]
    load: Callable[[Service, float], Load | GrpcLoad]
    unprotected: Mapping[str, object]


def _edge(services: Services, folder: Path, **settings: object) -> Service:
    bundle = write_bundle(folder / "slow-edge", edge_work=WORK)
    return services.start("edge_node", "edge", {"bundles": bundle, **EDGE, **settings}).wait_ready()


def _cloud(services: Services, folder: Path, **settings: object) -> Service:
    bundle = write_bundle(folder / "slow-cloud", full_work=WORK)
    return services.start("cloud_service", "cloud", {"bundles": bundle, **CLOUD, **settings}).wait_ready()


@contextmanager
def _edge_asker(service: Service) -> Iterator[Ask]:
    device = Device(service.ports[0])
    yield lambda: device.predict(IMAGE, deadline_ms=SLO_MS).status == 200


@contextmanager
def _cloud_asker(service: Service) -> Iterator[Ask]:
    with grpc.insecure_channel(f"127.0.0.1:{service.ports[1]}") as channel:
        call: Call = channel.unary_unary(MODEL_INFER)
        yield lambda: ask(call, SLO_MS / 1000)


@contextmanager
def _edge_idler(service: Service) -> Iterator[Ask]:
    connection = http.client.HTTPConnection("127.0.0.1", service.ports[0], timeout=5)

    def once() -> bool:
        try:
            connection.request("GET", "/healthz")
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):  # where there are too many, it makes room
            connection.close()
            return False
        response.read()
        return response.status == 200

    with closing(connection):
        yield once


@contextmanager
def _cloud_idler(service: Service) -> Iterator[Ask]:
    with grpc.insecure_channel(f"127.0.0.1:{service.ports[1]}") as channel:
        call: Call = channel.unary_unary(SERVER_LIVE)
        yield lambda: bool(call(b"", timeout=5))


SIDES = {
    "edge": Side(
        _edge,
        _edge_asker,
        _edge_idler,
        lambda service, rate: Load(service.ports[0], [IMAGE], rate=rate, deadline_ms=SLO_MS),
        {"adaptive_limit": False, "max_inflight": 100_000},
    ),
    "cloud": Side(
        _cloud,
        _cloud_asker,
        _cloud_idler,
        lambda service, rate: GrpcLoad(service.ports[1], rate=rate, deadline_ms=SLO_MS),
        {"adaptive_limit": False, "max_queue": 100_000},
    ),
}


class Idle:
    """Somebody who asks for nothing, now and then, from entering to leaving the block: what an answer takes
    on this machine at this time, whatever it says."""

    def __init__(self, once: Ask) -> None:
        self.times_ms: list[float] = []
        self._once = once
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="idle")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        self._once()
        due = time.monotonic() + IDLE_S
        while not self._stopping.wait(left := due - time.monotonic()):
            # Whom the last answer has kept past its time has waited since then: others do not wait to ask.
            started = time.monotonic() if left > 0 else due
            self._once()
            self.times_ms.append((time.monotonic() - started) * 1000)
            due += IDLE_S


@dataclass(frozen=True)
class Seen:
    """What was seen of one wave: the peak before it, its answers, what nothing took meanwhile, and when all
    was normal again."""

    peak: float
    wave: Answers
    idle_ms: list[float]
    seconds: float
    normal_s: float


def suffer(side: Side, service: Service, load: float, peak: float, seconds: float) -> Seen:
    """Send `load` requests a second for so long, then half of the peak."""
    with side.load(service, load) as wave:
        with side.idler(service) as once, Idle(once) as idle:
            _wait(seconds)
        wave.stop()
        ended = time.monotonic()
        with side.load(service, 0.5 * peak) as after:
            _until_quiet(after, ended)
    return Seen(peak, wave.answers, idle.times_ms, seconds, _last_bad(after.answers, ended) - ended)


def _peak(side: Side, service: Service) -> float:
    """Answers a second to a few clients that ask one request after the other."""

    def ask_on(_: int) -> int:
        count = 0
        with side.asker(service) as once:
            once()
            started = time.monotonic()
            while time.monotonic() - started < PEAK_S:
                count += once()
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask_on, range(CLIENTS))) / PEAK_S


def _until_quiet(load: Load | GrpcLoad, since: float) -> None:
    """Wait until nothing has gone wrong for a while, but not for ever."""
    while (now := time.monotonic()) - _last_bad(load.answers, since) < QUIET_S and now - since < GIVE_UP_S:
        _wait(0.2)


def _wait(seconds: float) -> None:
    started = time.monotonic()
    eventually(lambda: time.monotonic() - started > seconds, seconds + 5, "the time passes")


def _last_bad(answers: Answers, since: float) -> float:
    return max((a.sent for a in answers if a.status != 200 or a.late_ms > a.stalled_ms), default=since)


def judged(seen: Seen) -> Finding:
    """Who is let in is answered in time, who is not is told at once, and both add up to a service at work."""
    accepted = Answers(a for a in seen.wave if a.status in (200, 504))  # the second: let in, and not in time
    refused = Answers(a for a in seen.wave if a.status == 503)
    in_time = sum(a.status == 200 and a.late_ms <= a.stalled_ms for a in accepted)
    goodput = in_time / seen.seconds / seen.peak
    figures, broken = [], []

    def bounded(figure: str, good: bool) -> None:
        figures.append(figure)
        if not good:
            broken.append(figure)

    bounded(f"goodput {goodput:.0%} of {seen.peak:.0f}/s", goodput >= GOODPUT)
    accepted_ms, refused_ms = _p99_ms(accepted), _p99_ms(refused)
    bounded(f"accepted p99 {accepted_ms:.0f} ms", accepted_ms <= SLO_MS)
    idle_ms = float(np.quantile(seen.idle_ms, 0.99))
    bounded(
        f"refused p99 {refused_ms:.1f} ms (nothing: {idle_ms:.1f})",
        refused_ms < max(REFUSED_MS, SLOWER * idle_ms + SLOWER_MS),
    )
    bounded(f"normal in {seen.normal_s:.1f} s", seen.normal_s <= NORMAL_S)
    failed = len(seen.wave) - len(accepted) - len(refused)
    return Finding(len(seen.wave), failed, ", ".join(figures), tuple(broken))


def _p99_ms(answers: Answers) -> float:
    """Less the time at which the machine stood still; 0 where there are none."""
    times = [a.seconds * 1000 - a.stalled_ms for a in answers]
    return float(np.quantile(times, 0.99)) if times else 0.0


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("name", SIDES)
def test_overload(name: str, times: int, services: Services, tmp_path: Path, row: Row) -> None:
    side, seconds = SIDES[name], row.count(10, 60)

    def once() -> list[Case]:
        service = side.start(services, tmp_path)
        peak = _peak(side, service)
        found = judged(suffer(side, service, times * peak, peak, seconds))
        service.stop()
        bare = side.start(services, tmp_path, **side.unprotected)
        twin = judged(suffer(side, bare, times * peak, peak, row.count(4, 20)))
        bare.kill()
        return [Case(f"overload {times}x of the {name}", found, twin, "admission")]

    row.measure(once)
