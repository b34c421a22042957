"""Writes numbers into a database and says each when it is committed: what the disk itself is tried with.

`LEDGER="path synchronous" python -m tests.faults.shim PANEL hold tests.faults.ledger`
"""

import os
import sqlite3
import sys


def connect() -> sqlite3.Connection:
    """A connection to the database of the environment; the table is made when missing."""
    path, synchronous = os.environ["LEDGER"].split()
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY, filler BLOB)")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def main() -> None:
    """A number comes in, a line goes out: `ok`, or the name of the error; then the next connection is new."""
    connection: sqlite3.Connection | None = None
    for line in sys.stdin:
        try:
            if connection is None:
                connection = connect()
            connection.execute("INSERT INTO numbers VALUES (?, zeroblob(2000))", (int(line),))
            said = "ok"
        except sqlite3.Error as error:
            said = error.sqlite_errorname
            if connection is not None:
                connection.close()
                connection = None
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
