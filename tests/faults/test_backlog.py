"""The outbox has too much, for too long, or what nobody wants: the disk stays bounded, every drop is counted,
the link keeps its share, and the cloud has each sample once."""

import hashlib
import io
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from secrets import token_hex

import grpc
import numpy as np
from PIL import Image

from edge_node.keeping import Reason
from edge_node.sample_store import Form, Sample, SampleStore
from tests.faults.pair import CLOUD, EDGE, Pair, Pictures
from tests.faults.plain_client import Call
from tests.faults.plain_forwarder import PUT_SAMPLE, PlainForwarder, put_request
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.joint.device import Load
from tests.joint.scrape import Samples
from tests.joint.services import Services, eventually

WEEK_S = 7 * 24 * 3600.0
MAX_AGE_H = 336.0
MAX_BYTES = 1 << 20
LOG_BYTES = 5 << 20  # what SQLite's log of changes may take beside it: 4 MiB, and what one transaction adds
RATE = 120.0
LARGE = 64  # pixels a side, of noise: some 12 kB
SHARE = 0.1
UNKNOWN_RATE = 320_000.0  # bytes a second that an edge takes a link for that it does not know


def large_pictures() -> Iterator[bytes]:
    """Pictures that do not compress."""
    chance = np.random.default_rng(3)
    while True:
        out = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (LARGE, LARGE, 3), np.uint8)).save(out, "PNG")
        yield out.getvalue()


def rows(database: Path) -> int:
    """How many samples are in a database."""
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM samples").fetchone()[0])


def on_disk(database: Path) -> int:
    """The bytes of a database and of SQLite's log beside it."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


# ---- full


def fill(pair: Pair, samples: int) -> Finding:
    """Send so many samples that are worth keeping to an edge without a cloud."""
    pair.start([EDGE])
    edge, largest = pair.running[EDGE], 0
    with Load(pair.port(EDGE), large_pictures(), rate=RATE, deadline_ms=1000) as load:
        while len(load.answers) < samples:
            load.go_on(0.2)
            largest = max(largest, on_disk(pair.file(EDGE)))
    answered = sum(a.status == 200 for a in load.answers)

    def handled() -> bool:
        page = edge.metrics()
        return page.total("tandem_outbox_kept_total") + page.total("tandem_outbox_dropped_total") >= answered

    eventually(handled, 10, "every sample is kept or dropped")
    page = edge.metrics()
    edge.stop()
    missed = abs(balance(page) - rows(pair.file(EDGE)))
    dropped = page.total("tandem_outbox_dropped_total")
    figure = f"{answered} samples, {dropped:.0f} dropped, {missed:.0f} uncounted, {largest >> 20} MiB at most"
    limit = MAX_BYTES + LOG_BYTES
    broken = (f"{largest} bytes on disk, the limit is {limit}",) if largest > limit else ()
    return Finding(answered, int(missed) + len(load.answers) - answered, figure, broken)


def balance(page: Samples) -> float:
    """The samples that should be there, by the counters."""
    gone = sum(page.total("tandem_outbox_dropped_total", reason=why) for why in ("age", "full", "set_aside"))
    return page.total("tandem_outbox_kept_total") - gone - page.total("tandem_outbox_forwarded_total")


def test_outbox_full(services: Services, tmp_path: Path, row: Row) -> None:
    samples = row.count(600, 20_000)
    bounded = Pair(services, tmp_path, "bounded", cloud="", outbox_max_bytes=MAX_BYTES)
    endless = Pair(services, tmp_path, "endless", cloud="")
    with ThreadPoolExecutor(2) as pool:
        found, twin = pool.map(fill, (bounded, endless), (samples, samples))
    row.judge(Case("outbox full", found, twin, "its bound"))


# ---- a week's outage


@dataclass(frozen=True)
class Backlog:
    """What lies in an outbox: the digests of samples of the last week, of some too old, and of poison."""

    fresh: list[str]
    old: int
    poison: int


def write_backlog(pair: Pair, fresh: int, old: int = 0, poison: int = 0) -> Backlog:
    """Fill an edge's outbox before it starts. Poison is first in turn."""
    digest = hashlib.sha256((pair.bundle / "manifest.json").read_bytes()).hexdigest()
    store = SampleStore(pair.file(EDGE), synchronous="normal", max_bytes=1 << 30, max_age_s=1e9)
    pictures, now = Pictures(11), time.time()
    good = list(islice(pictures, fresh + old))
    payloads = [b"no image at all"] * poison + good
    store.begin(now)
    for number, payload in enumerate(payloads):
        share = number / len(payloads)
        too_old = number >= len(payloads) - old
        kept_at = now - 3 * WEEK_S if too_old else now - WEEK_S * (1 - share)
        store.put(
            Sample(
                key=token_hex(16),
                kept_at=kept_at,
                reason=Reason.FALLBACK,
                promised=False,
                model="colors",
                version="1",
                digest=digest,
                form=Form.IMAGE,
                payload=payload,
                edge=None,
                threshold=0.8,
            )
        )
    store.commit()
    store.close()
    return Backlog(pictures.digests[:fresh], old, poison)


def replay(pair: Pair, backlog: Backlog, within_s: float, row: Row) -> Finding:
    """Let the cloud be there again; whether everything comes, once, at no more than its share of the link."""
    pair.start()
    edge = pair.running[EDGE]
    eventually(lambda: edge.metrics().total("tandem_outbox_forwarded_total") > 0, 10, "forwarding begins")
    began, before = time.monotonic(), edge.metrics().total("tandem_outbox_sent_bytes_total")
    page, seconds = edge.metrics(), 0.0
    while page.total("tandem_outbox_depth") and seconds < within_s:
        eventually(lambda: time.monotonic() - began > seconds + 0.5, 5, "the time passes")  # noqa: B023
        page, seconds = edge.metrics(), time.monotonic() - began
        row.progress(int(page.total("tandem_outbox_forwarded_total")), len(backlog.fresh), "samples")
    rate = (page.total("tandem_outbox_sent_bytes_total") - before) / seconds
    for service in pair.running.values():
        service.stop()
    _, counts = pair.stored()
    missing = (
        sum(counts[digest] != 1 for digest in backlog.fresh) if not page.total("tandem_outbox_depth") else 0
    )
    uncounted = abs(page.total("tandem_outbox_dropped_total", reason="age") - backlog.old)
    uncounted += abs(page.total("tandem_outbox_poisoned_total") - backlog.poison)
    limit = SHARE * UNKNOWN_RATE * 1.1
    figure = f"{missing} missing or twice, {uncounted:.0f} uncounted, {rate / 1000:.0f} kB/s"
    broken = (f"{rate / 1000:.0f} kB/s, the limit is {limit / 1000:.0f}",) if rate > limit else ()
    return Finding(len(backlog.fresh), min(len(backlog.fresh), missing + int(uncounted)), figure, broken)


def test_a_weeks_outage(services: Services, tmp_path: Path, row: Row) -> None:
    samples = row.count(500, 100_000)
    modest = Pair(services, tmp_path, "modest", outbox_share=SHARE, outbox_max_age_h=MAX_AGE_H)
    greedy = Pair(services, tmp_path, "greedy", outbox_share=1, outbox_max_age_h=MAX_AGE_H)
    backlogs = [write_backlog(pair, samples, old=50) for pair in (modest, greedy)]
    found = replay(modest, backlogs[0], row.count(60, 7200), row)
    twin = replay(greedy, backlogs[1], row.count(30, 600), row)
    row.judge(Case("a week's outage replayed", found, twin, "its share of the link"))


# ---- poison, duplicates, reordering


def test_poison(services: Services, tmp_path: Path, row: Row) -> None:
    samples, poison = row.count(200, 20_000), 20
    pair = Pair(services, tmp_path, "poisoned", outbox_max_age_h=MAX_AGE_H)
    backlog = write_backlog(pair, samples, poison=poison)
    pair.start()
    edge = pair.running[EDGE]
    plain = Pictures(12)
    plainly = iter([b"no image at all", *islice(plain, 20)])
    with PlainForwarder(pair.port(CLOUD), plainly, pair.digest, beside=1):
        eventually(
            lambda: edge.metrics().total("tandem_outbox_depth") == 0, row.count(60, 3600), "it is empty"
        )
    page = edge.metrics()
    for service in pair.running.values():
        service.stop()
    _, counts = pair.stored()
    missing = sum(counts[digest] != 1 for digest in backlog.fresh)
    aside = page.total("tandem_outbox_poisoned_total")
    figure = f"{aside:.0f} of {poison} set aside, {missing} of {samples} others missing or twice"
    found = Finding(poison + samples, missing + int(abs(poison - aside)), figure)
    stuck = sum(counts[digest] != 1 for digest in plain.digests)
    twin = Finding(len(plain.digests), stuck, f"{stuck} behind it never came")
    row.judge(Case("poison in the outbox", found, twin, "setting aside"))


def test_duplicates_and_reordering(services: Services, tmp_path: Path, row: Row) -> None:
    samples = row.count(200, 20_000)
    pair = Pair(services, tmp_path, "twice")
    pair.start()
    pictures, plain = Pictures(13), Pictures(14)
    digest = pair.digest
    once = [put_request(picture, digest) for picture in islice(pictures, samples)]
    messages = [request.SerializeToString() for request in once for _ in range(3)]
    messages += [
        put_request(picture, digest).SerializeToString() for picture in islice(plain, 20) for _ in range(3)
    ]
    row.random.shuffle(messages)
    with (
        grpc.insecure_channel(f"127.0.0.1:{pair.port(CLOUD)}") as channel,
        ThreadPoolExecutor(8) as pool,
    ):
        put: Call = channel.unary_unary(PUT_SAMPLE)
        for answer in [pool.submit(put, message, timeout=10) for message in messages]:
            answer.result()
    for service in pair.running.values():
        service.stop()
    by_key, counts = pair.stored()
    failed = sum(by_key.get(request.key) is None for request in once)
    failed += sum(counts[known] != 1 for known in pictures.digests)
    found = Finding(3 * samples, failed, f"{samples} sent 3 times, in any order: {failed} missing or twice")
    twice = sum(counts[known] > 1 for known in plain.digests)
    twin = Finding(len(plain.digests), twice, f"{twice} of {len(plain.digests)} twice")
    row.judge(Case("duplicates and reordering", found, twin, "keys"))
