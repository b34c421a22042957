"""The outbox's thread: what it acknowledges is on disk, and a failing disk costs samples at most."""

import logging
import sqlite3
from pathlib import Path

import pytest

from edge_node.keeping import Reason
from tests.edge_node.outbox import WITHIN_S, Box, box, sample


def test_what_is_acknowledged_is_on_disk(tmp_path: Path) -> None:
    with box(tmp_path / "outbox.db") as one:
        futures = [one.outbox.put(sample(f"{number:032x}")) for number in range(50)]
        assert all(future.result(WITHIN_S) for future in futures)
        assert len(one.rows()) == one.outbox.depth == one.value("depth") == 50
        assert one.value("kept_total", model="colors", reason="fallback") == 50
        assert one.value("writable") == 1


def test_it_is_written_without_anybody_waiting(tmp_path: Path) -> None:
    with box(tmp_path / "outbox.db") as one:
        one.outbox.put(sample())
        one.comes_to("depth", 1)


def test_what_was_handed_over_is_written_when_it_closes(tmp_path: Path) -> None:
    with box(tmp_path / "outbox.db") as one:
        for number in range(200):
            one.outbox.put(sample(f"{number:032x}"))
    assert len(one.rows()) == 200
    assert sorted(file.name for file in tmp_path.iterdir()) == ["outbox.db"]
    assert one.outbox.put(sample("f" * 32)).result(0) is False
    assert one.outbox.next().result(0) is None


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with box(path) as one:
        for number in range(3):
            one.outbox.put(sample(f"{number:032x}", kept_at=one.now - 60))
    with box(path) as again:
        again.comes_to("depth", 3)
        assert again.value("oldest_age_seconds") == 60
        found = again.outbox.next().result(WITHIN_S)
        assert found is not None
        assert found[0].key == f"{0:032x}"
        assert again.outbox.forwarded(found[0].key).result(WITHIN_S)
        assert again.outbox.put_aside(f"{1:032x}").result(WITHIN_S)
        assert again.outbox.defer(f"{2:032x}", 10, failed=True).result(WITHIN_S)
        assert again.outbox.next().result(WITHIN_S) is None
        again.now += 10
        assert again.outbox.next().result(WITHIN_S) == (sample(f"{2:032x}", kept_at=again.now - 70), 1)
        assert (again.value("depth"), again.value("set_aside")) == (1, 1)
        assert (again.value("forwarded_total"), again.value("poisoned_total")) == (1, 1)


def test_nobody_is_told_of_a_sample_that_had_to_go(tmp_path: Path) -> None:
    with box(tmp_path / "outbox.db", max_bytes=4096) as one:
        first = one.outbox.put(sample("1" * 32, promised=True, size=2000))
        assert first.result(WITHIN_S) is True
        late = one.outbox.put(sample("2" * 32, promised=True, size=2000))
        assert late.result(WITHIN_S) is False
        assert one.rows() == [("1" * 32,)]
        assert one.value("dropped_total", reason="full") == 1


def test_beyond_the_bound_of_the_queue_samples_are_dropped(tmp_path: Path) -> None:
    limit = 3 * sample().bytes
    one = Box(tmp_path / "outbox.db", max_waiting_bytes=limit)
    futures = [one.outbox.put(sample(f"{number:032x}")) for number in range(5)]
    assert [future.done() for future in futures] == [False] * 3 + [True] * 2
    assert one.value("dropped_total", reason="queue") == 2
    one.outbox.start()
    assert [future.result(WITHIN_S) for future in futures] == [True] * 3 + [False] * 2
    assert one.outbox.put(sample("f" * 32)).result(WITHIN_S)
    assert one.outbox.close(WITHIN_S)


def test_without_its_folder_samples_wait_and_are_written_when_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "later"
    with box(folder / "outbox.db", max_waiting_bytes=2 * sample().bytes) as one:
        assert one.outbox.next().result(WITHIN_S) is None  # it has tried by then
        asked = one.outbox.put(sample("1" * 32, promised=True))
        assert asked.result(WITHIN_S) is False  # at once: there is nothing to wait for
        one.outbox.put(sample("2" * 32))
        one.outbox.put(sample("3" * 32))
        assert one.value("dropped_total", reason="storage") == 1
        assert one.value("writable") == 0
        assert one.outbox.next().result(WITHIN_S) is None
        folder.mkdir()
        one.comes_to("depth", 2)
        assert one.value("writable") == 1
        assert one.value("kept_total", model="colors", reason="fallback") == 2
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "its folder must exist" in told[0]
    assert told[1].endswith("is written again")


def test_what_never_came_to_the_disk_is_counted_at_the_end(tmp_path: Path) -> None:
    with box(tmp_path / "nowhere" / "outbox.db") as one:
        one.outbox.put(sample())
    assert one.value("dropped_total", reason="storage") == 1


@pytest.mark.parametrize("content", [b"no database at all" * 300, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_broken_file_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(content)
    with box(path) as one:
        one.outbox.put(sample())
        one.comes_to("depth", 1)
    (aside,) = tmp_path.glob("outbox.db.broken-*")
    assert aside.read_bytes() == content
    assert "is damaged: set aside as" in caplog.text


def test_a_file_that_breaks_later_is_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with box(path) as one:
        for number in range(100):
            one.outbox.put(sample(f"{number:032x}", size=3000))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\x55" * (len(whole) - 4096))
    with box(path) as again:
        again.outbox.put(sample("f" * 32))
        again.comes_to("depth", 1)
        assert again.rows() == [("f" * 32,)]
    assert len(list(tmp_path.glob("outbox.db.broken-*"))) == 1


def test_while_another_process_has_the_file_samples_wait(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with box(path) as one:
        one.outbox.put(sample("1" * 32))
        one.comes_to("depth", 1)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN IMMEDIATE")
        future = one.outbox.put(sample("2" * 32))
        assert not future.done()
        reader.execute("COMMIT")
        reader.close()
        assert future.result(WITHIN_S)


def test_it_can_be_closed_before_it_was_started(tmp_path: Path) -> None:
    one = Box(tmp_path / "outbox.db")
    assert one.outbox.close(0)


@pytest.mark.parametrize(("setting", "level"), [("full", 2), ("normal", 1)])
def test_what_a_commit_waits_for_is_a_setting(tmp_path: Path, setting: str, level: int) -> None:
    with box(tmp_path / "outbox.db", synchronous=setting) as one:
        found = one.outbox._do(lambda store: store._connection.execute("PRAGMA synchronous").fetchone())
        assert found.result(WITHIN_S) == (level,)


def test_every_drop_is_counted(tmp_path: Path) -> None:
    """What was on disk is there, forwarded or dropped; what is old goes first, then what is worth least."""
    with box(tmp_path / "outbox.db", max_bytes=20_000) as one:
        for number in range(40):
            reason = (Reason.LOW_CONFIDENCE, Reason.AUDIT)[number % 2]
            one.outbox.put(sample(f"{number:032x}", size=400, reason=reason)).result(WITHIN_S)
        dropped = one.value("dropped_total", reason="full")
        assert dropped == 20
        assert {reason for (reason,) in one.rows("SELECT reason FROM samples")} == {"audit"}
        one.now += 1001
        assert one.outbox.next().result(WITHIN_S) is None
        assert one.value("dropped_total", reason="age") == 20
        assert one.rows() == []
