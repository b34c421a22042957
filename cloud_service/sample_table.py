"""The file of samples: its tables, what is in them, and how SQLite is told to keep it."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

SCHEMA = 1
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


def prepare(connection: sqlite3.Connection) -> None:
    """Make a connection durable, and the tables where there are none yet. Raises `sqlite3.Error`."""
    run = connection.execute
    (mode,) = run("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":  # as on a network's file system; then a commit may be undone by a power cut
        raise sqlite3.OperationalError(f"its file system takes no write-ahead log, only {mode!r}")
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


def insert(connection: sqlite3.Connection, record: Record, label: Label, now: float) -> None:
    """Add a sample, within a transaction."""
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


def label_of(connection: sqlite3.Connection, key: str) -> Label | None:
    """The label of the sample that has this key, None without one."""
    row = connection.execute("SELECT label_index, label FROM samples WHERE key = ?", (key,)).fetchone()
    return None if row is None else Label(*row)


def number_of(path: Path) -> int:
    """What tells a file from another of the same name; 0 for none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def size_of(connection: sqlite3.Connection) -> int:
    """The bytes of the database, with those that are only in its log."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the file is none that can be used, on any disk: damaged, foreign, or of another form."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # not SQLite's: ours, about the form
        return type(error) is sqlite3.DatabaseError
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
