"""How SQLite is told to keep samples: durably, or not at all."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from cloud_service.sample_table import prepare


def test_what_makes_it_durable_is_in_force(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "samples.db", isolation_level=None)) as connection:
        prepare(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_file_system_without_a_log_is_none() -> None:
    with (
        contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection,
        pytest.raises(sqlite3.OperationalError, match="no write-ahead log, only 'memory'"),
    ):
        prepare(connection)
