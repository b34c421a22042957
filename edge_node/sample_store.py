"""The table of samples that wait for the cloud: one SQLite file, its order, its bounds. No threads.

Every change happens between `begin` and `commit`; after an error, close the store and open another.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from edge_node.keeping import PROMISED, SET_ASIDE, WORTH, Reason
from edge_node.outcome import EdgeAnswer

SCHEMA = 1
# What a row may take beside its payload, and the pages that a larger one fills alone: so the bound in bytes
# is one of the file, save for the log of changes (WAL), which is written back at 4 MB.
_ROW_BYTES, _PAGE = 600, 4096
_AT_A_TIME, _BYTES_AT_A_TIME = 100, 1 << 20  # samples that are put off together
_TABLES = """
CREATE TABLE samples (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    kept_at REAL NOT NULL,        -- seconds since 1970
    reason TEXT NOT NULL,         -- fallback, low_confidence, audit, requested
    worth INTEGER NOT NULL,       -- what goes first has the least, 0 is set aside
    promised INTEGER NOT NULL,    -- 1: the device was told that it is kept
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL,           -- image (as it came) or tensor (raw, little-endian)
    edge_index INTEGER,
    edge_label TEXT,
    edge_confidence REAL,
    threshold REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL,       -- on disk, about
    payload BLOB NOT NULL
);
CREATE INDEX samples_by_worth ON samples (worth, number, bytes);
CREATE INDEX samples_by_turn ON samples (not_before, number) WHERE worth > 0;
CREATE INDEX samples_by_age ON samples (kept_at);
"""
_COLUMNS = (
    "key, kept_at, reason, promised, model, version, digest, kind, "
    "edge_index, edge_label, edge_confidence, threshold, payload"
)


class Form(StrEnum):
    """What a sample's payload is: an encoded image as it came, or the raw input tensor."""

    IMAGE = "image"
    TENSOR = "tensor"


@dataclass(frozen=True, slots=True)
class Sample:
    """An input that is worth learning from, and what the edge made of it.

    `key` is 32 hexadecimal digits; `kept_at` seconds since 1970. `promised` says that the device is told when
    it is on disk. `edge` is None where the edge model has not run.
    """

    key: str
    kept_at: float
    reason: Reason
    promised: bool
    model: str
    version: str
    digest: str
    form: Form
    payload: bytes
    edge: EdgeAnswer | None
    threshold: float

    @property
    def bytes(self) -> int:
        """What it takes on disk, about."""
        size = len(self.payload) + _ROW_BYTES
        return size if size <= _PAGE // 2 else -(-size // _PAGE) * _PAGE


@dataclass(slots=True)
class Tally:
    """What one transaction came to: `kept` by model and reason, `dropped` by why."""

    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    forwarded: int = 0
    set_aside: int = 0


class SampleStore:
    """An open database. `waiting` and `set_aside` count its samples, `bytes` is what they take."""

    def __init__(self, path: Path, *, synchronous: str, max_bytes: int, max_age_s: float) -> None:
        """`synchronous` is SQLite's: `full`, or `normal`, which may lose the last samples when the power
        goes. Raises `sqlite3.Error`; see `broken`."""
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._tally = Tally()
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare(synchronous)
            self._count()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, synchronous: str) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode=WAL")
        run(f"PRAGMA synchronous={synchronous.upper()}")
        run(f"PRAGMA journal_size_limit={4 << 20}")
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0:
            run("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                run(statement)
            run(f"PRAGMA user_version={SCHEMA}")
            run("COMMIT")
        elif version != SCHEMA:
            raise sqlite3.DatabaseError(f"its form is {version}, this version knows {SCHEMA}")

    def _count(self) -> None:
        found = self._connection.execute(
            "SELECT total(worth > 0), total(worth = 0), total(bytes) FROM samples INDEXED BY samples_by_worth"
        ).fetchone()
        self.waiting, self.set_aside, self.bytes = map(int, found)

    def close(self) -> None:
        """Write the log of changes back into the file and close it."""
        self._connection.close()

    def begin(self, now: float) -> None:
        """Begin a transaction at `now`, seconds since 1970: what is too old by then is dropped."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._tally = Tally()
        for aside, why in ((0, "age"), (1, "set_aside")):
            self._tally.dropped[why] += self._delete(
                "kept_at < ? AND (worth = 0) = ?", now - self._max_age_s, aside
            )
        self._make_room()

    def commit(self) -> Tally:
        """End it: from now on what it did is on disk. What it came to."""
        self._connection.execute("COMMIT")
        return self._tally

    def put(self, sample: Sample) -> None:
        """Keep a sample, and make room for it; the second time it changes nothing. One that is larger than
        everything may be is dropped."""
        if sample.bytes > self._max_bytes:
            self._tally.dropped["too_large"] += 1
            return
        edge, worth = sample.edge, PROMISED if sample.promised else WORTH[sample.reason]
        answer = (None, None, None) if edge is None else (edge.index, edge.label, edge.confidence)
        changed = self._connection.execute(
            f"INSERT OR IGNORE INTO samples ({_COLUMNS}, worth, bytes) "  # noqa: S608 - names from above
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                sample.key, sample.kept_at, sample.reason, sample.promised, sample.model, sample.version,
                sample.digest, sample.form, *answer, sample.threshold, sample.payload, worth, sample.bytes,
            ),
        ).rowcount  # fmt: skip
        self.waiting += changed
        self.bytes += changed * sample.bytes
        self._tally.kept[sample.model, sample.reason] += 1
        self._make_room()

    def holds(self, key: str) -> bool:
        """Whether there is such a sample."""
        found = self._connection.execute("SELECT 1 FROM samples WHERE key = ?", (key,)).fetchone()
        return found is not None

    def next(self, now: float) -> tuple[Sample, int] | None:
        """The sample whose turn it is at `now`, seconds since 1970, with how often it has failed: those that
        were not deferred, the oldest first, then those whose time has come."""
        row = self._connection.execute(
            f"SELECT {_COLUMNS}, tries FROM samples WHERE worth > 0 AND not_before <= ? "  # noqa: S608 - as above
            "ORDER BY not_before, number LIMIT 1",
            (now,),
        ).fetchone()
        if row is None:
            return None
        key, kept_at, reason, promised, model, version, digest, kind, *edge, threshold, payload, tries = row
        index, label, confidence = edge
        answer = None if index is None else EdgeAnswer(label, index, confidence)
        sample = Sample(
            key, kept_at, Reason(reason), bool(promised), model, version, digest, Form(kind), payload,
            answer, threshold,
        )  # fmt: skip
        return sample, tries

    def forwarded(self, key: str) -> bool:
        """The cloud has it: forget it here. Whether it was still there, as for those below."""
        count = self._delete("key = ?", key)
        self._tally.forwarded += count
        return count > 0

    def put_aside(self, key: str) -> bool:
        """The cloud will not take it: keep it, as long as there is room, and do not send it again."""
        changed = self._connection.execute(
            "UPDATE samples SET worth = ? WHERE key = ? AND worth > 0", (SET_ASIDE, key)
        ).rowcount
        self.waiting -= changed
        self.set_aside += changed
        self._tally.set_aside += changed
        return changed > 0

    def defer(self, key: str, until: float, *, failed: bool) -> bool:
        """Not before `until`; `failed` counts as a try."""
        changed = self._connection.execute(
            "UPDATE samples SET not_before = ?, tries = tries + ? WHERE key = ?", (until, failed, key)
        ).rowcount
        return changed > 0

    def defer_bundle(self, digest: str, now: float, until: float) -> int:
        """Not before `until` for those from one bundle whose turn it is at `now`, as many of them as one
        transaction should hold; how many."""
        going, size = [], 0
        for number, nbytes in self._connection.execute(
            "SELECT number, bytes FROM samples WHERE worth > 0 AND not_before <= ? AND digest = ? "
            "ORDER BY not_before, number LIMIT ?",
            (now, digest, _AT_A_TIME),
        ).fetchall():
            going.append((until, number))
            size += nbytes
            if size >= _BYTES_AT_A_TIME:  # SQLite may write each as a whole
                break
        self._connection.executemany("UPDATE samples SET not_before = ? WHERE number = ?", going)
        return len(going)

    def oldest(self) -> float | None:
        """When the oldest sample was kept, seconds since 1970."""
        (found,) = self._connection.execute("SELECT min(kept_at) FROM samples").fetchone()
        return None if found is None else float(found)

    def _make_room(self) -> None:
        """Until the rest fits, drop what is worth least, of that the oldest. What was promised stays: where
        only such samples are left, the newest goes, of which nobody was told yet."""
        while self.bytes > self._max_bytes:
            worth, number = self._connection.execute(
                "SELECT worth, number FROM samples ORDER BY worth, number LIMIT 1"
            ).fetchone()
            if worth == PROMISED:
                (number,) = self._connection.execute("SELECT max(number) FROM samples").fetchone()
            self._tally.dropped["set_aside" if worth == SET_ASIDE else "full"] += self._delete(
                "number = ?", number
            )

    def _delete(self, which: str, *values: object) -> int:
        """How many samples there were `which`, and are no more."""
        count, waiting, size = self._connection.execute(
            f"SELECT count(*), total(worth > 0), total(bytes) FROM samples WHERE {which}",  # noqa: S608 - ours
            values,
        ).fetchone()
        if count:
            self._connection.execute(f"DELETE FROM samples WHERE {which}", values)  # noqa: S608 - as above
            self.waiting -= int(waiting)
            self.set_aside -= count - int(waiting)
            self.bytes -= int(size)
        return int(count)


_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def broken(error: sqlite3.Error) -> bool:
    """Whether the file is none that can be used, on any disk: damaged, foreign, or of another form."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # not SQLite's: ours, about the form
        return type(error) is sqlite3.DatabaseError
    return code & 0xFF in _BROKEN


def set_file_aside(path: Path, clock: Callable[[], float]) -> Path:
    """Give the database, and SQLite's files beside it, another name, and never delete them; the new name.
    Raises `OSError`."""
    aside = path.with_name(f"{path.name}.broken-{clock():.0f}")
    # The log of changes first: on its own it is nothing, and it must not meet the next database.
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside
