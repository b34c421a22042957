"""Processes are killed and plugs pulled while samples are written: what was acknowledged is there, once."""

import itertools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.pair import CLOUD, EDGE, Pair, Pictures
from tests.faults.plain_forwarder import PlainForwarder
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.services import Services, eventually

BESIDE = 2  # pairs at the same time
TOLD, UNTOLD = 40.0, 120.0  # requests a second of devices that wait for the disk, and of those that do not
READY_S = 3.0
Victims = Sequence[Sequence[str]]


class Chain:
    """Some trials with one pair."""

    def __init__(self, pair: Pair, row: Row, trials: int) -> None:
        self.pair = pair
        self.trials = trials
        self._row = row
        self._chance = random.Random(row.random.getrandbits(64))
        self._slowest_s = 0.0
        self._plain = self._pictures()

    def suffer(self, victims: Victims, *, plainly: bool = False, hastily: bool = False) -> None:
        """Kill one of `victims` after the other, at any moment, and start it again. With `plainly`, a plain
        forwarder is at work beside the edge's own; with `hastily`, devices that do not wait for the disk."""
        self.pair.start()
        with ExitStack() as stack:
            if plainly:
                digest = self.pair.digest
                stack.enter_context(PlainForwarder(self.pair.port(CLOUD), iter(self._plain), digest))
            for trial in range(self.trials):
                self._kill(victims[trial % len(victims)], hastily)
                self._row.progress(BESIDE * trial, BESIDE * self.trials)
        self.pair.drain()

    def _kill(self, chosen: Sequence[str], hastily: bool) -> None:
        rates = {True: TOLD, False: UNTOLD} if hastily else {True: TOLD}
        pictures = {keep: self._pictures() for keep in rates}
        with ExitStack() as stack:
            loads = {
                keep: stack.enter_context(self.pair.load(pictures[keep], rate, keep=keep))
                for keep, rate in rates.items()
            }
            eventually(lambda: all(load.answers for load in loads.values()), 20, "devices are answered")
            loads[True].go_on(self._chance.uniform(0.0, 0.3))
            self.pair.kill(chosen)
            self._slowest_s = max(self._slowest_s, self.pair.start(chosen))
        for keep, load in loads.items():
            self.pair.note(load.answers, pictures[keep])

    def _pictures(self) -> Pictures:
        return Pictures(self._chance.getrandbits(64))

    def acknowledged(self) -> Finding:
        """What became of the samples that devices were told of."""
        by_key, counts = self.pair.stored()
        told = self.pair.told
        lost = sum(by_key.get(key) != digest for key, digest in told.kept.items())
        twice = sum(counts[digest] > 1 for digest in {*told.kept.values(), *told.answered})
        figure = (
            f"{len(told.kept)} acknowledged, {lost} lost, {twice} twice, ready in {self._slowest_s:.1f} s"
        )
        return Finding(self.trials, min(self.trials, lost + twice), figure)

    def acknowledged_and_soon_back(self) -> Finding:
        """The same, and whether the services were ready again soon."""
        found = self.acknowledged()
        late = f"ready after {self._slowest_s:.1f} s, the limit is {READY_S} s"
        return replace(found, broken=(late,) if self._slowest_s > READY_S else ())

    def answered(self) -> Finding:
        """What became of those that were answered before they were on disk."""
        _, counts = self.pair.stored()
        answered = self.pair.told.answered
        lost = sum(not counts[digest] for digest in answered)
        return Finding(self.trials, min(self.trials, lost), f"{lost} of {len(answered)} lost")

    def forwarded_plainly(self) -> Finding:
        """What became of those that the plain forwarder sent."""
        _, counts = self.pair.stored()
        twice = sum(counts[digest] > 1 for digest in self._plain.digests)
        return Finding(self.trials, min(self.trials, twice), f"{twice} of {len(self._plain.digests)} twice")


def total(chains: Sequence[Chain], judge: Callable[[Chain], Finding]) -> Finding:
    """The findings of chains as one."""
    findings = [judge(chain) for chain in chains]
    return Finding(
        sum(finding.trials for finding in findings),
        sum(finding.failures for finding in findings),
        "; ".join(finding.figure for finding in findings),
        tuple(line for finding in findings for line in finding.broken),
    )


class Crash:
    """Runs chains of trials of one test, beside each other."""

    def __init__(self, row: Row, services: Services, folder: Path) -> None:
        self._row = row
        self._services = services
        self._folder = folder
        self._rounds = itertools.count()

    def suffer(
        self,
        name: str,
        trials: int,
        victims: Victims,
        *,
        plainly: bool = False,
        hastily: bool = False,
        disk: str = "",
        **edge: object,
    ) -> list[Chain]:
        """So many trials in all. `disk` `lossy` forgets what was not synced, each chain's in its own way."""
        chains = []
        for number in range(BESIDE):
            kind = ("hold", str(self._row.random.getrandbits(32)))[number % 2] if disk else ""
            word = f"{name}{next(self._rounds)}"
            pair = Pair(self._services, self._folder, word, disk=kind, **edge)
            chains.append(Chain(pair, self._row, -(-trials // BESIDE)))
        with ThreadPoolExecutor(BESIDE) as pool:
            for done in [
                pool.submit(chain.suffer, victims, plainly=plainly, hastily=hastily) for chain in chains
            ]:
                done.result()
        return chains


@pytest.fixture
def crash(row: Row, services: Services, tmp_path: Path) -> Crash:
    return Crash(row, services, tmp_path)


def test_kill_the_edge(crash: Crash, row: Row) -> None:
    def once() -> list[Case]:
        chains = crash.suffer("kill", row.count(50, 2000), [[EDGE]], hastily=True)
        found, twin = total(chains, Chain.acknowledged_and_soon_back), total(chains, Chain.answered)
        return [Case("kill -9 of the edge while it writes", found, twin, "waiting for the disk")]

    row.measure(once)


def test_kill_the_cloud(crash: Crash, row: Row) -> None:
    def once() -> list[Case]:
        chains = crash.suffer("kill", row.count(50, 2000), [[CLOUD]], plainly=True)
        found, twin = total(chains, Chain.acknowledged_and_soon_back), total(chains, Chain.forwarded_plainly)
        return [Case("kill -9 of the cloud while it acknowledges", found, twin, "keys")]

    row.measure(once)


def test_lose_unsynced_writes(crash: Crash, row: Row) -> None:
    victims = [[EDGE], [CLOUD], [EDGE, CLOUD]]
    chains = crash.suffer("lossy", row.count(25, 500), victims, disk="lossy", qualify_s=0)
    careless = crash.suffer(
        "normal", row.count(4, 50), [[EDGE]], disk="lossy", qualify_s=0, outbox_synchronous="normal"
    )
    found, twin = total(chains, Chain.acknowledged), total(careless, Chain.acknowledged)
    row.judge(Case("unsynced writes are lost", found, twin, "synchronous=FULL"))
