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
from pathlib import Path
from typing import TypeVar

from cloud_service.sample_metrics import SampleMetrics
from cloud_service.sample_table import (
    Label,
    Record,
    insert,
    is_broken,
    label_of,
    number_of,
    prepare,
    size_of,
)
from inference_core.errors import NotReady, Overloaded

_RETRY_S = 1.0
_BUSY_S = 5.0  # for another replica's transaction to end
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


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
        self._file = 0  # the number of the file that the connection has open
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
            label = label_of(connection, key)
            if label is None:
                self._check_room(connection)
            else:
                self._metrics.repeated.inc()
            return label

        return await self._do(find)

    async def put(self, record: Record, label: Label) -> tuple[Label, bool]:
        """Store a sample with its label, unless there is one of that key; the stored label, and whether it
        was there before. On disk when this returns."""
        return await self._do(lambda connection: self._put(connection, record, label))

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
            self._metrics.bytes.set(size_of(self._connection))
        except sqlite3.Error as error:
            self._failed(error)
            raise Overloaded("samples cannot be stored now", _RETRY_S) from error
        return result

    def _written(self) -> None:
        """Something is on disk, which a look-up alone does not show."""
        self._metrics.writable.set(1)
        if self._failing:
            self._failing = False
            _log.info("the sample store %s is written again", self._path)

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, _BUSY_S, isolation_level=None, check_same_thread=False
        )  # closed by whoever stops
        try:
            self._file = number_of(self._path)
            prepare(connection)
            if not self._failing:
                self._metrics.writable.set(1)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put(self, connection: sqlite3.Connection, record: Record, label: Label) -> tuple[Label, bool]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            stored = label_of(connection, record.key)
            if stored is None:
                self._check_room(connection, sum(len(content.data) for content in record.contents))
                insert(connection, record, label, self._clock())
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        # Counted here, since whoever asked may have gone meanwhile.
        if stored is not None:
            self._metrics.repeated.inc()
            return stored, True
        self._metrics.stored.labels(record.reason).inc()
        self._written()
        return label, False

    def _check_room(self, connection: sqlite3.Connection, more: int = 0) -> None:
        size = size_of(connection)
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
        if is_broken(error):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Give the file, and SQLite's beside it, another name; what was acknowledged is never deleted."""
        if self._file != number_of(self._path):  # another replica has done so
            self._try_at = 0.0
            return
        try:
            aside = self._free_name()
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

    def _free_name(self) -> Path:
        """A name to set a file aside under, which is taken with that: a file there would be lost."""
        name, number = f"{self._path.name}.broken-{self._clock():.0f}", 1
        aside = self._path.with_name(name)
        while True:
            try:
                aside.touch(exist_ok=False)
            except FileExistsError:
                number += 1
                aside = self._path.with_name(f"{name}-{number}")
            else:
                return aside

    def _let_go(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # it fails already, or everything in it is on disk
                self._connection.close()
            self._connection = None
