"""The disk is full, broken or read-only, for one call or from there on: inference goes on, a metric says so,
and what was acknowledged before, in between and after is there."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.faults.pair import CLOUD, EDGE, Pair, Pictures
from tests.faults.panel import Disk, Panel
from tests.faults.plain_client import MODEL_INFER, Call, ask
from tests.faults.plain_forwarder import PUT_SAMPLE, put_request
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.faults.test_disk import ledger
from tests.joint.device import Device
from tests.joint.services import ROOT, Service, Services, eventually

DEADLINE_MS = 500
LATE_MS = 20.0
BACK_S = 15.0
SPARE = 3  # one keeping may take some calls more than the one before it
Keep = Callable[[], tuple[bool, set[str]]]


@dataclass
class Trials:
    """What was seen with one disk."""

    count: int = 0
    unanswered: int = 0
    untold: int = 0  # samples were not kept, and no metric says so
    keys: set[str] = field(default_factory=set)


class Victim:
    """Something that keeps samples, on a disk that the test can break: `keep` asks it to and says whether
    inference was answered in time and which keys were acknowledged, `metrics` reads how many errors there
    have been and whether it can write."""

    def __init__(
        self, panel: Panel, keep: Keep, metrics: Callable[[], tuple[float, bool]], wanted: int = 1
    ) -> None:
        self._panel = panel
        self._keep = keep
        self._metrics = metrics
        self._wanted = wanted

    def suffer(self, disk: Disk, row: Row, *, forever: bool) -> Trials:
        """Break every call of one keeping, one after the other, alone or with all that follow."""
        trials = Trials()
        self._panel.disarm()
        self._recover(trials)
        self._panel.arm(disk, 0, forever=False)
        self._recover(trials)
        calls = self._panel.calls
        for nth in range(1, calls + SPARE):
            self.fail(trials, disk, nth, forever=forever)
            row.progress(nth, calls, f"calls of {disk.name}")
        return trials

    def fail(self, trials: Trials, disk: Disk, nth: int, *, forever: bool) -> None:
        """Break one call, or all from there, then let the disk be well again."""
        errors, _ = self._metrics()
        self._panel.arm(disk, nth, forever=forever)
        answered, keys = self._keep()
        trials.count += 1
        trials.unanswered += not answered
        trials.untold += len(keys) < self._wanted and self._metrics() == (errors, True)
        trials.keys |= keys
        self._panel.disarm()
        self._recover(trials)

    def _recover(self, trials: Trials) -> None:
        def kept() -> bool:
            keys = self._keep()[1]
            trials.keys.update(keys)
            return len(keys) == self._wanted

        eventually(kept, BACK_S, "samples are kept again")


def _metrics(service: Service, prefix: str) -> tuple[float, bool]:
    page = service.metrics()
    return page.total(f"{prefix}_errors_total"), page.total(f"{prefix}_writable") == 1


def edge_victim(pair: Pair) -> Victim:
    """An edge whose devices wait for the disk."""
    device, pictures = Device(pair.port(EDGE)), iter(Pictures(1))

    def keep() -> tuple[bool, set[str]]:
        answer = device.predict(next(pictures), deadline_ms=DEADLINE_MS, keep="true")
        in_time = answer.late_ms - answer.stalled_ms <= LATE_MS
        return answer.status == 200 and in_time, {answer.body["kept"]} - {None}

    return Victim(pair.panel(EDGE), keep, lambda: _metrics(pair.running[EDGE], "tandem_outbox"))


@contextmanager
def cloud_victim(pair: Pair) -> Iterator[Victim]:
    """A cloud that is sent samples, and asked to infer at the same time."""
    pictures, digest = iter(Pictures(2)), pair.digest
    with grpc.insecure_channel(f"127.0.0.1:{pair.port(CLOUD)}") as channel:
        put: Call = channel.unary_unary(PUT_SAMPLE)
        infer: Call = channel.unary_unary(MODEL_INFER)

        def keep() -> tuple[bool, set[str]]:
            request = put_request(next(pictures), digest)
            sending = put.future(request.SerializeToString(), timeout=DEADLINE_MS / 1000)
            answered = ask(infer, DEADLINE_MS / 1000)
            refused = sending.exception() is not None
            return answered, set() if refused else {request.key}

        yield Victim(
            pair.panel(CLOUD),
            keep,
            lambda: _metrics(pair.running[CLOUD], "tandem_samples"),
        )


@contextmanager
def outbox_victim(folder: Path) -> Iterator[Victim]:
    """An outbox that is opened and closed for every two samples."""
    panel, errors = folder / "panel", 0.0
    Panel(panel)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.shim", str(panel), "pass", "tests.faults.outbox_process"],
        cwd=ROOT,
        env={**os.environ, "OUTBOX": str(folder / "outbox.db")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def keep() -> tuple[bool, set[str]]:
        nonlocal errors
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        more, *keys = process.stdout.readline().split()
        errors += float(more)
        return True, set(keys)

    try:
        yield Victim(Panel(panel), keep, lambda: (errors, True), wanted=2)
    finally:
        process.communicate()


def found(trials: Trials, database: Path, columns: str) -> Finding:
    """What was seen, held against what is on the disk, which must be whole and nothing beside it."""
    with closing(sqlite3.connect(database)) as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        there = {key for (key,) in connection.execute(columns)}
    lost = len(trials.keys - there)
    beside = {path.name for path in database.parent.glob(f"{database.name}*")}
    beside -= {f"{database.name}{suffix}" for suffix in ("", "-wal", "-shm")}
    broken = [] if whole else ["the database is damaged"]
    broken += [f"{name} was left" for name in sorted(beside)]
    figure = f"{trials.unanswered} unanswered, {trials.untold} untold, {lost} of {len(trials.keys)} lost"
    failures = min(trials.count, trials.unanswered + trials.untold + lost)
    return Finding(trials.count, failures, figure, tuple(broken))


class Disks:
    """One disk after the other under everything that keeps samples; all at the same time, as most of it is
    waiting for the next try."""

    def __init__(self, row: Row, services: Services, folder: Path) -> None:
        self._row = row
        self._services = services
        self._folder = folder

    def edge(self, disk: Disk, forever: bool) -> Finding:
        """An edge, at work and while it starts."""
        pair = Pair(self._services, self._folder, f"edge_{disk.name}_{forever}", disk="pass", cloud="")
        pair.start([EDGE])
        victim = edge_victim(pair)
        trials = victim.suffer(disk, self._row, forever=forever)
        pair.kill([EDGE])
        pair.panel(EDGE).arm(disk, 1, forever=True)
        pair.start([EDGE])
        victim.fail(trials, disk, 1, forever=True)
        pair.running[EDGE].stop()
        return found(trials, pair.file(EDGE), "SELECT key FROM samples")

    def cloud(self, disk: Disk, forever: bool) -> Finding:
        """A cloud that is sent samples."""
        pair = Pair(self._services, self._folder, f"cloud_{disk.name}_{forever}", disk="pass")
        pair.start()
        with cloud_victim(pair) as victim:
            trials = victim.suffer(disk, self._row, forever=forever)
        for service in pair.running.values():
            service.stop()
        return found(trials, pair.file(CLOUD), "SELECT key FROM samples")

    def outbox(self, disk: Disk, forever: bool) -> Finding:
        """An outbox alone, from its first call to its last."""
        folder = self._folder / f"outbox_{disk.name}_{forever}"
        folder.mkdir()
        with outbox_victim(folder) as victim:
            trials = victim.suffer(disk, self._row, forever=forever)
        return found(trials, folder / "outbox.db", "SELECT key FROM samples")

    def plain(self, disk: Disk) -> Finding:
        """A program that writes in the way of its answers."""
        folder = self._folder / f"plain_{disk.name}"
        folder.mkdir()
        with ledger(folder, "pass") as writer:
            writer.panel.arm(disk, 0, forever=False)
            assert writer.write(0) == "ok"
            calls = writer.panel.calls
            failed = 0
            for nth in range(1, calls + 1):
                writer.panel.arm(disk, nth, forever=True)
                failed += writer.write(nth) != "ok"
                writer.panel.disarm()
        return Finding(calls, failed, "")


NAMES = {Disk.FULL: "disk full (ENOSPC)", Disk.BROKEN: "disk broken (EIO)", Disk.READ_ONLY: "disk read-only"}


def both(once: Finding, for_good: Finding) -> Finding:
    """What was found with calls that failed alone, and with all that followed."""
    return Finding(
        once.trials + for_good.trials,
        once.failures + for_good.failures,
        f"once: {once.figure}; for good: {for_good.figure}",
        once.broken + for_good.broken,
    )


def test_disk(services: Services, tmp_path: Path, row: Row) -> None:
    disks = Disks(row, services, tmp_path)
    kinds = (disks.edge, disks.cloud, disks.outbox)
    with ThreadPoolExecutor(2 * len(Disk) * len(kinds)) as pool:
        seen = {
            (disk, kind.__name__): [pool.submit(kind, disk, forever) for forever in (False, True)]
            for disk in Disk
            for kind in kinds
        }
    plain = {disk: disks.plain(disk) for disk in Disk}
    row.judge(
        *(
            Case(
                f"{NAMES[disk]} at any call, {kind}",
                both(*(part.result() for part in parts)),
                plain[disk],
                "its own thread for the disk",
            )
            for (disk, kind), parts in seen.items()
        )
    )
