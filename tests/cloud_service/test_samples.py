"""The store of samples: each once, on disk before it is acknowledged, bounded, and back when the disk is."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cloud_service.sample_metrics import SampleMetrics
from cloud_service.sample_table import Content, Label, Record
from cloud_service.samples import Samples
from inference_core.errors import NotReady, Overloaded

pytestmark = pytest.mark.anyio
RED, BLUE = Label(0, "red"), Label(2, "blue")


def record(key: str = "0" * 32, size: int = 100) -> Record:
    content = Content("input", "UINT8", (1, size), b"\x07" * size)
    return Record(key, "node-7", "colors", "1", "d" * 64, "audit", 5.5, "tensor", (RED, 0.9, 0.8), (content,))


class Store:
    """A store in a file, and its metrics."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._registry = CollectorRegistry()
        self.samples = Samples(path, SampleMetrics(self._registry), max_bytes=max_bytes, clock=lambda: 7.0)

    def value(self, name: str, **labels: str) -> float:
        """The value of the metric `tandem_samples_<name>`."""
        return self._registry.get_sample_value(f"tandem_samples_{name}", labels) or 0.0

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What is in the file."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()


@contextlib.asynccontextmanager
async def store(path: Path, max_bytes: int = 1 << 20) -> AsyncIterator[Store]:
    made = Store(path, max_bytes)
    await made.samples.open()
    try:
        yield made
    finally:
        await made.samples.close()


async def test_a_sample_is_stored_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db") as one:
        assert await one.samples.find("0" * 32) is None
        assert await one.samples.put(record(), BLUE) == (BLUE, False)
        assert one.rows("SELECT * FROM samples") == [
            (1, "0" * 32, "node-7", "colors", "1", "d" * 64, "audit", 5.5, 7.0, "tensor",
             0, "red", 0.9, 0.8, 2, "blue"),
        ]  # fmt: skip
        assert one.rows("SELECT * FROM tensors") == [(1, "input", "UINT8", "[1, 100]", b"\x07" * 100)]
        assert one.value("stored_total", reason="audit") == 1
        assert 0 < one.value("bytes") < 1 << 20


async def test_the_second_of_a_key_gets_the_first_one_s_label(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db") as one:
        await one.samples.put(record(), BLUE)
        assert await one.samples.put(record(size=5), RED) == (BLUE, True)
        assert await one.samples.find("0" * 32) == BLUE
        assert one.rows("SELECT count(*) FROM samples") == one.rows("SELECT count(*) FROM tensors") == [(1,)]
        assert (one.value("stored_total", reason="audit"), one.value("repeated_total")) == (1, 2)


async def test_many_at_once_with_repetitions_are_stored_once_each(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db") as one, store(tmp_path / "samples.db") as replica:
        keys = [f"{number % 20:032x}" for number in range(60)]
        puts = [(one, replica)[at % 2].samples.put(record(key), BLUE) for at, key in enumerate(keys)]
        told = await asyncio.gather(*puts)
        assert sum(not known for _, known in told) == 20
        assert one.rows("SELECT count(*) FROM samples") == [(20,)]


async def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db") as one:
        await one.samples.put(record(), BLUE)
    assert not (tmp_path / "samples.db-wal").exists()
    async with store(tmp_path / "samples.db") as again:
        assert await again.samples.find("0" * 32) == BLUE


async def test_a_full_store_takes_no_more_but_knows_what_it_has(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db", 100_000) as one:
        await one.samples.put(record("1" * 32, size=70_000), BLUE)
        with pytest.raises(Overloaded, match="the limit is 100000"):
            await one.samples.put(record("2" * 32, size=70_000), BLUE)
        assert await one.samples.find("1" * 32) == BLUE
        assert one.rows("SELECT count(*) FROM tensors") == [(1,)]
        assert (one.value("errors_total"), one.value("writable")) == (0, 1)


async def test_without_its_folder_nothing_is_taken_until_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "later"
    async with store(folder / "samples.db") as one:
        for _ in range(2):
            with pytest.raises(Overloaded, match="cannot be stored now"):
                await one.samples.put(record(), BLUE)
        assert (one.value("errors_total"), one.value("writable")) == (1, 0)  # it does not try each time
        folder.mkdir()
        async with asyncio.timeout(10):
            while not one.value("stored_total", reason="audit"):
                with contextlib.suppress(Overloaded):
                    await one.samples.put(record(), BLUE)
                await asyncio.sleep(0.05)
        assert one.value("writable") == 1
    told = [item.getMessage() for item in caplog.records]
    assert len(told) == 2
    assert "its folder must exist" in told[0]
    assert told[1].endswith("is written again")


async def test_a_broken_file_is_set_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "samples.db"
    path.write_bytes(b"no database at all" * 300)
    async with store(path) as one:
        assert await one.samples.put(record(), BLUE) == (BLUE, False)
    assert (tmp_path / "samples.db.broken-7").read_bytes() == b"no database at all" * 300


async def test_when_closed_it_takes_nothing(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db") as one:
        pass
    with pytest.raises(NotReady):
        await one.samples.find("0" * 32)


def set_aside(folder: Path) -> set[str]:
    """The databases there that were, without SQLite's files beside them."""
    names = {file.name for file in folder.glob("*.broken-*")}
    return {name for name in names if not name.endswith(("-wal", "-shm"))}


async def test_what_is_set_aside_never_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "samples.db"
    for number in range(3):  # within one second by the store's clock
        path.write_bytes(b"no database at all %d" % number * 300)
        async with store(path) as one:
            assert await one.samples.put(record(), BLUE) == (BLUE, False)
    names = ("broken-7", "broken-7-2", "broken-7-3")
    aside = [(tmp_path / f"samples.db.{name}").read_bytes() for name in names]
    assert aside == [b"no database at all %d" % number * 300 for number in range(3)]


async def test_a_replica_does_not_set_aside_what_another_has_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "samples.db"
    async with store(path) as one, store(path) as replica:
        await one.samples.put(record("1" * 32), BLUE)
        await replica.samples.put(record("2" * 32), BLUE)
        for made in (one, replica):  # both see the damage, one after the other
            damage = sqlite3.DatabaseError("file is not a database")
            damage.sqlite_errorcode = sqlite3.SQLITE_NOTADB
            made.samples._failed(damage)
            with contextlib.suppress(Overloaded):
                await made.samples.put(record("3" * 32), BLUE)
        assert await replica.samples.find("3" * 32) == BLUE
    assert set_aside(tmp_path) == {"samples.db.broken-7"}


async def test_a_look_up_does_not_show_that_it_can_be_written(tmp_path: Path) -> None:
    async with store(tmp_path / "samples.db") as one:
        await one.samples.put(record("1" * 32), BLUE)
        one.samples._failed(sqlite3.OperationalError("database or disk is full"))
        one.samples._try_at = 0.0
        assert await one.samples.find("1" * 32) == BLUE
        assert one.value("writable") == 0
        await one.samples.put(record("2" * 32), BLUE)
        assert one.value("writable") == 1


async def test_a_sample_whose_sender_has_gone_is_counted_as_well(tmp_path: Path) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow() -> float:
        entered.set()
        gate.wait(5)
        return 7.0

    async with store(tmp_path / "samples.db") as one:
        one.samples._clock = slow
        putting = asyncio.create_task(one.samples.put(record(), BLUE))
        assert await asyncio.to_thread(entered.wait, 5)
        putting.cancel()
        await asyncio.wait([putting])
        gate.set()
        assert await one.samples.find("0" * 32) == BLUE
        assert (one.value("stored_total", reason="audit"), one.value("repeated_total")) == (1, 1)
