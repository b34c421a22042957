"""The cloud, or the way to it, fails in every way: devices are answered in time and notice nothing else."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.faults.plain_client import PlainClient
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.device import Answers, Device, Load
from tests.joint.proxy import REFUSE, SILENT, Fault, Proxy
from tests.joint.services import Service, Services, eventually

DEADLINE_MS = 150
LATE_MS = 20.0  # an answer may come so long after its deadline
RATE = 60.0
PLAIN_RATE = 5.0
RESUME_S = 2.0
ATTEMPTS = 1.1  # per request that the policy would escalate
SLOWER, SLOWER_MS = 1.1, 1.0  # what an open breaker may cost at p99, whichever is more
BESIDE = 4  # faults at the same time, each on an edge of its own
FLAP_S = 0.5
RTT_S = 0.01  # each way, while all is well
WARM_S = 2.0
LABELS = {"cloud": "blue", "edge": "red", "edge_fallback": "red"}
NOT_ASKED = {"breaker_open", "cloud_unreachable"}
IMAGES = (picture(UNSURE), picture(SURE))
WELL = Fault(delay_s=RTT_S)
# A breaker like this never opens.
NO_BREAKER = {"breaker_failures": 1000, "breaker_share": 1.0, "breaker_window": 1000}


@dataclass(frozen=True)
class Trouble:
    """A fault, or two that take turns; whether the breaker is to open, and what heals it."""

    faults: tuple[Fault, ...]
    opens: bool = True
    breaker_twin: bool = False
    after: Fault = WELL


TROUBLES = {
    "refused": Trouble((REFUSE,)),
    "silent": Trouble((SILENT,), breaker_twin=True),
    "10x slow": Trouble((Fault(delay_s=10 * RTT_S),), breaker_twin=True),
    "cut mid-answer": Trouble((Fault(cut_answers=True),)),
    "garbage": Trouble((Fault(garble=True),)),
    "wrong version": Trouble((Fault(reset_first=True),), opens=False, after=replace(WELL, reset_first=True)),
    "flapping at 1 Hz": Trouble((REFUSE, WELL), opens=False),
    "1 byte at a time": Trouble((Fault(drip_s=0.01),), breaker_twin=True),
}


@dataclass(frozen=True)
class Seen:
    """What was seen of one fault: the devices' answers while it lasted, and what became of it."""

    answers: Answers
    attempts: float
    resumed_s: float
    plain: tuple[int, int]
    without_breaker: Answers


Measure = Callable[[str], Seen]


class Bench:
    """The clouds that all troubles share: the right one, and one with the next version."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.services = services
        self.bundle = write_bundle(folder / "colors")
        other = write_bundle(folder / "next", version="2", full_bias=(5.0, 0.0, 0.0))
        self.cloud = services.cloud(self.bundle)
        self.next = services.cloud(other, name="next")
        self.cloud.wait_ready()
        self.next.wait_ready()

    def suffer(self, name: str, seconds: float) -> Seen:
        """Let the fault last so long, with devices at an edge, and a plain client beside it."""
        trouble = TROUBLES[name]
        faults = tuple(self._aimed(fault, name) for fault in trouble.faults)
        word = name.replace(" ", "_")
        with ExitStack() as stack:
            proxy = stack.enter_context(Proxy(self.cloud.ports[1]))
            proxy.begin(WELL)
            edge = self.services.edge(self.bundle, proxy.port, f"edge_{word}", deadline_ms=DEADLINE_MS)
            bare = self._without_breaker(trouble, proxy.port, word)
            loads = [stack.enter_context(_load(service)) for service in (edge, *bare)]
            plain = stack.enter_context(PlainClient(proxy.port, rate=PLAIN_RATE, deadline_ms=DEADLINE_MS))
            load = loads[0]
            load.go_on(WARM_S)
            assert load.answers.of("cloud"), "the cloud answers through the proxy"
            before, began = _attempts(edge), time.monotonic()
            self._inject(proxy, faults, began + seconds)
            ended = time.monotonic()
            after = _attempts(edge)
            proxy.begin(trouble.after)
            healed = time.monotonic()
            resumed_s = load.resumed_after(healed)
        return Seen(
            load.answers.sent_in(began, ended),
            after - before,
            resumed_s,
            plain.failed_in(began, ended - DEADLINE_MS / 1000),
            Answers(a for other in loads[1:] for a in other.answers.sent_in(began, ended)),
        )

    def _aimed(self, fault: Fault, name: str) -> Fault:
        return replace(fault, target=self.next.ports[1]) if name == "wrong version" else fault

    def _without_breaker(self, trouble: Trouble, port: int, word: str) -> list[Service]:
        if not trouble.breaker_twin:
            return []
        name = f"bare_{word}"
        return [self.services.edge(self.bundle, port, name, deadline_ms=DEADLINE_MS, **NO_BREAKER)]

    def _inject(self, proxy: Proxy, faults: tuple[Fault, ...], until: float) -> None:
        """Begin the faults by turns, `FLAP_S` each where there is more than one."""
        turn = 0
        while (left := until - time.monotonic()) > 0:
            proxy.begin(faults[turn % len(faults)])
            step_s = left if len(faults) == 1 else min(FLAP_S, left)
            started = time.monotonic()
            eventually(lambda: time.monotonic() - started >= step_s, step_s + 5, "the time passes")  # noqa: B023
            turn += 1


def _load(service: Service) -> Load:
    device = Device(service.wait_ready().ports[0])
    eventually(
        lambda: device.predict(IMAGES[0], deadline_ms=2000).source == "cloud", 10, "the cloud is reached"
    )
    return Load(service.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS)


def _attempts(edge: Service) -> float:
    return edge.metrics().total("tandem_cloud_attempts_total")


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measure]:
    """What became of every fault that was asked for; several at a time, as each takes long and little. Asked
    again, it is measured again."""
    torture = request.config.getoption("--size", "ci") == "torture"
    seconds = 300.0 if torture else 30.0
    items = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params["name"] for item in items if isinstance(item, pytest.Function)}
    folder = tmp_path_factory.mktemp("link")
    with Services(folder) as services, ThreadPoolExecutor(BESIDE) as pool:
        bench = Bench(services, folder)
        first = {name: pool.submit(bench.suffer, name, seconds) for name in TROUBLES if name in wanted}

        def measure(name: str) -> Seen:
            return (first.pop(name, None) or pool.submit(bench.suffer, name, seconds)).result()

        yield measure


@pytest.mark.parametrize("name", TROUBLES)
def test_cloud(name: str, seen: Measure, row: Row) -> None:
    def once() -> list[Case]:
        got, trouble = seen(name), TROUBLES[name]
        compared = left_alone(got.answers) if trouble.opens else None
        found = judged(got.answers, compared, got.attempts, got.resumed_s)
        if trouble.breaker_twin:
            removed, twin = "the breaker", judged(got.without_breaker, got.without_breaker)
        else:
            failed, asked = got.plain
            removed, twin = "the edge, by plain calls", Finding(asked, failed, "")
        return [Case(f"cloud {name}", found, twin, removed)]

    row.measure(once)


def left_alone(answers: Answers) -> Answers:
    """Those to requests that were sent after the cloud was first left alone."""
    return answers.sent_in(min((a.sent for a in answers if a.reason in NOT_ASKED), default=float("inf")))


def judged(
    answers: Answers, compared: Answers | None, attempts: float | None = None, resumed_s: float | None = None
) -> Finding:
    """Every answer right and by its deadline, those of `compared` as fast as if there were no cloud, and
    within bounds what else is known."""
    failed = [a for a in answers if a.status != 200 or a.label != LABELS[a.source]]
    late = sum(a.late_ms - a.stalled_ms > LATE_MS for a in answers)
    worst_ms = max((a.late_ms for a in answers), default=0.0)
    figures = [f"worst {worst_ms:+.0f} ms from deadline"]
    broken = [f"{late} too late, by {worst_ms:.0f} ms at worst"] if late else []

    def bounded(figure: str, value: float, limit: float) -> None:
        figures.append(figure)
        if value > limit:
            broken.append(f"{figure}, the limit is {limit:.2f}")

    if compared is not None:
        alone, fallen = p99_ms(compared.of("edge")), p99_ms(compared.of("edge_fallback"))
        figures.append(f"p99 {fallen.value:.1f} ms, edge-only {alone.value:.1f} ms")
        limit = max(SLOWER * alone.most, alone.most + SLOWER_MS)
        if not compared:
            broken.append("the cloud was never left alone")
        elif fallen.least > limit:
            broken.append(f"p99 {fallen.least:.1f} ms or more, the limit is {limit:.1f} ms")
    if attempts is not None:
        ratio = attempts / max(1, sum(a.reason != "confident" for a in answers))
        bounded(f"{ratio:.2f} attempts per request", ratio, ATTEMPTS)
    if resumed_s is not None:
        bounded(f"back in {resumed_s:.2f} s", resumed_s, RESUME_S)
    return Finding(len(answers), len(failed), ", ".join(figures), tuple(broken))


class Estimate(NamedTuple):
    """A quantile of some times, and what it is at least and at most with 95 % confidence each."""

    value: float
    least: float
    most: float


def p99_ms(answers: Answers) -> Estimate:
    """Less the time at which the machine stood still; infinite where there are none.

    The bounds are order statistics: how many of n times are under the quantile q is binomial, so it lies
    between those of the ranks n q -+ 1.64 sqrt(n q (1 - q)), whatever the distribution.
    """
    times = sorted(a.seconds * 1000 - a.stalled_ms for a in answers)
    if not times:
        return Estimate(math.inf, math.inf, math.inf)
    count, q = len(times), 0.99
    spread = 1.64 * math.sqrt(count * q * (1 - q))
    ranks = (count * q, count * q - spread, count * q + spread)
    return Estimate(*(times[min(count - 1, max(0, math.floor(rank)))] for rank in ranks))
