"""The samples that edge nodes forward: one SQLite file, each sample in it once, by its key.

One thread has the connection. Several replicas may share the file on one machine: the key decides.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cloud_service.sample_metrics import SampleMetrics
from inference_core.errors import NotReady, Overloaded

SCHEMA = 1
_RETRY_S = 1.0
_BUSY_S = 5.0  # for another replica's transaction to end
_TABLES = """
CREATE TABLE samples (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    node TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    reason TEXT NOT NULL,         -- fallback, low_confidence, audit, requested
    kept_at REAL NOT NULL,        -- seconds since 1970, by the node's clock
    stored_at REAL NOT NULL,      -- the same by the cloud's
    form TEXT NOT NULL,           -- image, tensor, or features.<cut>
    edge_index INTEGER,
    edge_label TEXT,
    edge_confidence REAL,
    threshold REAL,
    label_index INTEGER NOT NULL, -- the full model's answer
    label TEXT NOT NULL
);
CREATE TABLE tensors (
    sample INTEGER NOT NULL REFERENCES samples (number),
    name TEXT NOT NULL,
    datatype TEXT NOT NULL,       -- BYTES is an encoded image
    shape TEXT NOT NULL,
    data BLOB NOT NULL,           -- little-endian, row-major
    PRIMARY KEY (sample, name)
);
"""
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Label:
    """A class: its index and its name."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Content:
    """One tensor of a sample as it is stored."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A sample with all that is known of it.

    `kept_at` is in seconds since 1970 by the node's clock; `edge` is the edge model's answer with its
    confidence and the threshold, None where it has not run.
    """

    key: str
    node: str
    model: str
    version: str
    digest: str
    reason: str
    kept_at: float
    form: str
    edge: tuple[Label, float, float] | None
    contents: tuple[Content, ...]


class Samples:
    """The store. Its methods raise `Overloaded` while the disk fails or is full, `NotReady` when closed."""

    def __init__(
        self,
        path: Path,
        metrics: SampleMetrics,
        *,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes` bounds the file; `clock` gives seconds since 1970."""
        self._path = path
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "samples")
        self._connection: sqlite3.Connection | None = None
        self._failing = False
        self._try_at = 0.0
        self._closed = False

    async def open(self) -> None:
        """Open the file, or begin one; where that fails, it is tried again when samples come."""
        with contextlib.suppress(Overloaded):  # logged and counted
            await self._do(lambda _: None)

    async def close(self) -> None:
        """Finish what is under way and close the file."""
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        self._thread.shutdown()

    async def find(self, key: str) -> Label | None:
        """The label of the sample that has this key, None for one that is new. Raises `Overloaded` where
        there would be no room for it."""

        def find(connection: sqlite3.Connection) -> Label | None:
            label = _label(connection, key)
            if label is None:
                self._check_room(connection)
            return label

        label = await self._do(find)
        if label is not None:
            self._metrics.repeated.inc()
        return label

    async def put(self, record: Record, label: Label) -> tuple[Label, bool]:
        """Store a sample with its label, unless there is one of that key; the stored label, and whether it
        was there before. On disk when this returns."""
        stored, known = await self._do(lambda connection: self._put(connection, record, label))
        if known:
            self._metrics.repeated.inc()
        else:
            self._metrics.stored.labels(record.reason).inc()
        return stored, known

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._closed:
            raise NotReady("the service is stopping")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._attempt, work)

    def _attempt(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """On the thread: do it, with a connection that works."""
        if self._failing and time.monotonic() < self._try_at:
            raise Overloaded("samples cannot be stored now", _RETRY_S)
        try:
            if self._connection is None:
                self._connection = self._opened()
            result = work(self._connection)
            self._metrics.bytes.set(_size(self._connection))
        except sqlite3.Error as error:
            self._failed(error)
            raise Overloaded("samples cannot be stored now", _RETRY_S) from error
        self._metrics.writable.set(1)
        if self._failing:
            self._failing = False
            _log.info("the sample store %s is written again", self._path)
        return result

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, _BUSY_S, isolation_level=None, check_same_thread=False
        )  # closed by whoever stops
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put(self, connection: sqlite3.Connection, record: Record, label: Label) -> tuple[Label, bool]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            stored = _label(connection, record.key)
            if stored is None:
                self._check_room(connection, sum(len(content.data) for content in record.contents))
                _insert(connection, record, label, self._clock())
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return (label, False) if stored is None else (stored, True)

    def _check_room(self, connection: sqlite3.Connection, more: int = 0) -> None:
        size = _size(connection)
        if size + more >= self._max_bytes:
            words = f"the samples are {size} bytes and this one {more} more, the limit is {self._max_bytes}"
            raise Overloaded(words, 60.0)

    def _failed(self, error: sqlite3.Error) -> None:
        self._metrics.errors.inc()
        self._metrics.writable.set(0)
        self._let_go()
        self._try_at = time.monotonic() + _RETRY_S
        if not self._failing:
            self._failing = True
            hint = "" if self._path.parent.is_dir() else ": its folder must exist"
            _log.error(
                "the sample store %s cannot be written: %s%s; the edges keep theirs",
                self._path,
                error,
                hint,
            )
        if _broken(error):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Give the file, and SQLite's beside it, another name; what was acknowledged is never deleted."""
        aside = self._path.with_name(f"{self._path.name}.broken-{self._clock():.0f}")
        try:
            for suffix in ("-wal", "-shm", ""):
                file = self._path.with_name(self._path.name + suffix)
                if file.exists():
                    file.rename(aside.with_name(aside.name + suffix))
        except OSError as error:
            _log.error("the sample store %s is damaged and cannot be set aside: %s", self._path, error)
            return
        self._try_at = 0.0
        _log.error(
            "the sample store %s is damaged: set aside as %s; a new one is begun", self._path, aside.name
        )

    def _let_go(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # it fails already, or everything in it is on disk
                self._connection.close()
            self._connection = None


def _prepare(connection: sqlite3.Connection) -> None:
    run = connection.execute
    run("PRAGMA journal_mode=WAL")
    run("PRAGMA synchronous=FULL")
    run(f"PRAGMA journal_size_limit={4 << 20}")
    run("BEGIN IMMEDIATE")  # of several replicas, one makes the tables
    (version,) = run("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _TABLES.split(";"):
            run(statement)
        run(f"PRAGMA user_version={SCHEMA}")
    run("COMMIT")
    if version not in (0, SCHEMA):
        raise sqlite3.DatabaseError(f"its form is {version}, this version knows {SCHEMA}")


def _insert(connection: sqlite3.Connection, record: Record, label: Label, now: float) -> None:
    edge: tuple[object, ...] = (None, None, None, None)
    if record.edge is not None:
        answer, confidence, threshold = record.edge
        edge = answer.index, answer.name, confidence, threshold
    number = connection.execute(
        "INSERT INTO samples (key, node, model, version, digest, reason, kept_at, stored_at, form, "
        "edge_index, edge_label, edge_confidence, threshold, label_index, label) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.key, record.node, record.model, record.version, record.digest, record.reason,
            record.kept_at, now, record.form, *edge, label.index, label.name,
        ),
    ).lastrowid  # fmt: skip
    connection.executemany(
        "INSERT INTO tensors (sample, name, datatype, shape, data) VALUES (?, ?, ?, ?, ?)",
        [(number, c.name, c.datatype, str(list(c.shape)), c.data) for c in record.contents],
    )


def _label(connection: sqlite3.Connection, key: str) -> Label | None:
    row = connection.execute("SELECT label_index, label FROM samples WHERE key = ?", (key,)).fetchone()
    return None if row is None else Label(*row)


def _size(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)


def _broken(error: sqlite3.Error) -> bool:
    """Whether the file is none that can be used, on any disk: damaged, foreign, or of another form."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # not SQLite's: ours, about the form
        return type(error) is sqlite3.DatabaseError
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
