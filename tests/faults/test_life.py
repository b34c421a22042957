"""Services are told to stop, and models are swapped, under load: nobody is left without an answer."""

import hashlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.bundles import LABELS, UNSURE, picture, write_bundle
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.admin import point, reload
from tests.joint.device import Answers, Load
from tests.joint.services import Service, Services, eventually, free_port

WORK = 34  # about 10 ms for one run
WINDOW_MS = 50  # for which a request waits at the cloud for company: so that some are always on their way
RATE = 25.0  # so that two edges at a time leave the machine room
SWAP_RATE = 150.0
DEADLINE_MS = 1000
ON_THE_WAY_S = 0.005  # at most, from a device to the edge
BESIDE = 2
VERSIONS = 4
STOP_S = 10.0


def stopped(start: Callable[[], Service], how: signal.Signals, trials: int, row: Row) -> list[Answers]:
    """The answers to what had been asked by the moment of each signal."""
    return [_stop(start(), how, 0.2 + 0.3 * row.random.random()) for _ in range(trials)]


def _stop(edge: Service, how: signal.Signals, seconds: float) -> Answers:
    port = edge.wait_ready().ports[0]
    with Load(port, [picture(UNSURE)], rate=RATE, deadline_ms=DEADLINE_MS) as load:
        eventually(lambda: bool(load.answers.of("cloud")), 10, "the cloud answers")
        load.go_on(seconds)
        asked = time.monotonic()
        edge.signal(how)
        status = edge.wait(STOP_S)
    assert status == (0 if how is signal.SIGTERM else -how), f"exit status {status}"
    return load.answers.sent_in(0, asked - ON_THE_WAY_S)


def judged(groups: Sequence[Answers]) -> Finding:
    """How many stops failed somebody."""
    failed = [sum(a.status != 200 for a in answers) for answers in groups]
    bad = [a for answers in groups for a in answers if a.status != 200]
    how = {a.error or f"{a.status}: {a.body['error']}" for a in bad}
    said = f"{sum(failed)} of {sum(map(len, groups))} requests failed"
    return Finding(len(groups), sum(map(bool, failed)), ", ".join([said, *how]))


def test_sigterm_under_load(services: Services, tmp_path: Path, row: Row) -> None:
    bundle = write_bundle(tmp_path / "colors", full_work=WORK)
    cloud = services.cloud(bundle, batch_window_ms=WINDOW_MS).wait_ready()

    def start() -> Service:
        return services.edge(bundle, cloud.ports[1])

    trials = row.count(20, 200)
    with ThreadPoolExecutor(BESIDE) as pool:
        halves = [pool.submit(stopped, start, signal.SIGTERM, trials // BESIDE, row) for _ in range(BESIDE)]
        found = judged([answers for half in halves for answers in half.result()])
        halves = [pool.submit(stopped, start, signal.SIGKILL, 4, row) for _ in range(BESIDE)]
        twin = judged([answers for half in halves for answers in half.result()])
    row.judge(Case("SIGTERM of the edge under load", found, twin, "the drain, by SIGKILL"))


class Shelf:
    """Bundles of one model in several versions, each with a favourite label, and the one that is current."""

    def __init__(self, folder: Path) -> None:
        self.current = folder / "current"
        self._folders = [
            write_bundle(
                folder / f"v{number}",
                version=str(number),
                edge_bias=tuple(np.eye(len(LABELS))[number % len(LABELS)] * 100),
            )
            for number in range(VERSIONS)
        ]
        self.digests = [
            hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest() for path in self._folders
        ]
        self.put(0)

    def put(self, number: int) -> None:
        """Make a version the current one, in one step."""
        point(self.current, self._folders[number])

    def right(self, body: dict[str, Any]) -> bool:
        """Whether an answer comes from exactly one version."""
        number = int(body["model"]["version"])
        label = LABELS[number % len(LABELS)]
        said = (body["model"]["digest"], body["prediction"]["label"])
        return said == (self.digests[number], label)


def test_swaps_under_load(services: Services, tmp_path: Path, row: Row) -> None:
    shelf, port = Shelf(tmp_path), free_port()
    edge = services.edge(shelf.current, "", http_port=port).wait_ready()
    swaps, stale = row.count(100, 1000), 0
    with Load(port, [picture(UNSURE)], rate=SWAP_RATE, deadline_ms=DEADLINE_MS) as load:
        for swap in range(1, swaps + 1):
            number = swap % VERSIONS
            shelf.put(number)
            status, said = reload(edge)
            assert (status, said["result"]) == (200, "ok")
            later = load.go_on(0.05)
            stale += sum(a.status == 200 and a.body["model"]["version"] != str(number) for a in later)
            row.progress(swap, swaps, "swaps")
    mixed = sum(a.status == 200 and not shelf.right(a.body) for a in load.answers)
    statuses = Counter(a.status for a in load.answers if a.status != 200)
    failed = statuses.total()
    seen = {a.body["model"]["version"] for a in load.answers if a.status == 200}
    figure = f"{failed} of {len(load.answers)} requests failed, {mixed} mixed, {stale} stale"
    broken = [] if len(seen) == VERSIONS else [f"only versions {sorted(seen)} have answered"]
    broken += [f"{count} times status {status}" for status, count in statuses.items()]
    found = Finding(swaps, min(swaps, failed + mixed + stale), figure, tuple(broken))
    edge.stop()
    twin = restarted(services, shelf, port)
    row.judge(Case("swaps of the model under load", found, twin, "the hot swap, by restarts"))


def restarted(services: Services, shelf: Shelf, port: int) -> Finding:
    """The same by stopping the node and starting it again."""
    swaps = 2
    edge = services.edge(shelf.current, "", http_port=port).wait_ready()
    with Load(port, [picture(UNSURE)], rate=SWAP_RATE, deadline_ms=DEADLINE_MS) as load:
        for swap in range(swaps):
            shelf.put(swap)
            edge.stop()
            edge = services.edge(shelf.current, "", http_port=port).wait_ready()
    edge.stop()
    failed = sum(a.status != 200 for a in load.answers)
    return Finding(swaps, min(swaps, failed), f"{failed} of {len(load.answers)} requests failed")
