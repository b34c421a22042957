"""The table of samples against a model of it, through drops, failures, crashes and restarts."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_node.keeping import PROMISED, SET_ASIDE, WORTH, Reason
from edge_node.outcome import EdgeAnswer
from edge_node.sample_store import Sample, SampleStore, Tally, broken, set_file_aside
from tests.edge_node.outbox import START, sample

MAX_BYTES, MAX_AGE_S = 40_000, 1000.0


def opened(path: Path, max_bytes: int = MAX_BYTES) -> SampleStore:
    return SampleStore(path, synchronous="full", max_bytes=max_bytes, max_age_s=MAX_AGE_S)


def write(store: SampleStore, *samples: Sample, now: float = START) -> Tally:
    store.begin(now)
    for one in samples:
        store.put(one)
    return store.commit()


def batched(keys: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """The keys, so many at a time."""
    rest = iter(keys)
    while some := tuple(islice(rest, size)):
        yield some


@dataclass
class Held:
    """What the model knows of one sample."""

    sample: Sample
    worth: int
    tries: int = 0
    not_before: float = 0.0


class Samples(RuleBasedStateMachine):
    """Everything that an outbox does with its store, one transaction at a time, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.generation = 0
        self.store = opened(self.path)
        self.now = START
        self.held: list[Held] = []
        self.made = 0
        self.put = self.gone = 0

    @property
    def path(self) -> Path:
        return Path(self.folder.name) / f"outbox-{self.generation}.db"

    @rule(
        reasons=st.lists(
            st.tuples(st.sampled_from(Reason), st.booleans(), st.integers(0, 12_000)), max_size=4
        )
    )
    def keep(self, reasons: list[tuple[Reason, bool, int]]) -> None:
        new = []
        for reason, promised, size in reasons:
            self.made += 1
            new.append(
                sample(f"{self.made:032x}", kept_at=self.now, reason=reason, promised=promised, size=size)
            )
        tally = write(self.store, *new, now=self.now)
        self.put += len(new)
        assert tally.kept == Counter((s.model, s.reason) for s in new)
        expected = self.drop_old()
        for one in new:
            self.held.append(Held(one, PROMISED if one.promised else WORTH[one.reason]))
            expected += self.drop_least()
        assert +tally.dropped == expected
        self.gone += expected.total()

    def drop_old(self) -> Counter[str]:
        """What goes for its age, by why."""
        old = [h for h in self.held if h.sample.kept_at < self.now - MAX_AGE_S]
        self.held = [h for h in self.held if h not in old]
        return Counter("set_aside" if h.worth == SET_ASIDE else "age" for h in old)

    def drop_least(self) -> Counter[str]:
        """What goes for room, by why."""
        dropped: Counter[str] = Counter()
        while sum(h.sample.bytes for h in self.held) > MAX_BYTES:
            least = min(h.worth for h in self.held)
            candidates = [h for h in self.held if h.worth == least]
            victim = candidates[-1 if least == PROMISED else 0]
            self.held.remove(victim)
            dropped["set_aside" if least == SET_ASIDE else "full"] += 1
        return dropped

    def due(self) -> Held | None:
        waiting = [h for h in self.held if h.worth > SET_ASIDE and h.not_before <= self.now]
        return min(waiting, key=lambda h: h.not_before, default=None)

    @rule(fate=st.sampled_from(["forwarded", "aside", "failed", "deferred"]), seconds=st.floats(0, 2000))
    def try_next(self, fate: str, seconds: float) -> None:
        expected = self.due()
        found = self.store.next(self.now)
        if expected is None or found is None:
            assert (expected, found) == (None, None)
            return
        assert found == (expected.sample, expected.tries)
        key = found[0].key
        self.store.begin(self.now)
        if fate == "forwarded":
            assert self.store.forwarded(key)
            self.held.remove(expected)
            self.gone += 1
        elif fate == "aside":
            assert self.store.put_aside(key)
            expected.worth = SET_ASIDE
        else:
            assert self.store.defer(key, self.now + seconds, failed=fate == "failed")
            expected.not_before = self.now + seconds
            expected.tries += fate == "failed"
        tally = self.store.commit()
        assert (tally.forwarded, tally.set_aside) == (fate == "forwarded", fate == "aside")

    @rule()
    def forward_what_is_not_there(self) -> None:
        self.store.begin(self.now)
        assert not self.store.forwarded("f" * 32)
        assert not self.store.put_aside("f" * 32)
        tally = self.store.commit()
        assert (tally.forwarded, tally.set_aside) == (0, 0)

    @rule(seconds=st.floats(0, 600))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        tally, expected = write(self.store, now=self.now), self.drop_old()
        assert +tally.dropped == expected
        self.gone += expected.total()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = opened(self.path)

    @precondition(lambda self: self.generation < 3)
    @rule(torn=st.booleans())
    def crash(self, torn: bool) -> None:
        """What was committed is in the files as they are; what was not is not."""
        if torn:
            self.store.begin(self.now)
            self.store.put(sample("e" * 32, kept_at=self.now))
        files = [self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal")]
        self.generation += 1
        for file, suffix in zip(files, ("", "-wal"), strict=True):
            if file.exists():
                shutil.copy(file, self.path.with_name(self.path.name + suffix))
        self.store.close()
        self.store = opened(self.path)

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        aside = sum(h.worth == SET_ASIDE for h in self.held)
        assert (self.store.waiting, self.store.set_aside) == (len(self.held) - aside, aside)
        assert self.store.bytes == sum(h.sample.bytes for h in self.held) <= MAX_BYTES
        assert self.put == self.gone + len(self.held)
        oldest = min((h.sample.kept_at for h in self.held), default=None)
        assert self.store.oldest() == oldest

    def teardown(self) -> None:
        for held in self.held:
            assert self.store.holds(held.sample.key)
        self.store.close()
        self.folder.cleanup()


def test_nothing_is_lost_or_counted_twice_whatever_happens() -> None:
    run_state_machine_as_test(
        Samples, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )


def test_a_sample_comes_back_as_it_was(tmp_path: Path) -> None:
    edge = EdgeAnswer("red", 0, 0.25)
    store = opened(tmp_path / "outbox.db")
    one = sample(edge=edge, reason=Reason.AUDIT, promised=True)
    write(store, one)
    assert store.next(START) == (one, 0)
    store.close()


def test_the_second_of_the_same_key_changes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "outbox.db")
    write(store, sample())
    write(store, sample(size=5000))
    assert (store.waiting, store.bytes) == (1, sample().bytes)
    store.close()


def test_a_bundle_s_samples_are_put_off_together_as_many_as_one_transaction_should_hold(
    tmp_path: Path,
) -> None:
    store = opened(tmp_path / "outbox.db", 100 << 20)
    small = [sample(f"{number:032x}") for number in range(150)]
    write(store, *small, replace(sample("f" * 32), digest="e" * 64))
    for times in (100, 50, 0):
        store.begin(START)
        assert store.defer_bundle("d" * 64, START, START + 60) == times
        store.commit()
    found = store.next(START)
    assert found == (replace(sample("f" * 32), digest="e" * 64), 0), "another bundle's goes on"
    store.begin(START)
    store.forwarded("f" * 32)
    store.commit()
    assert store.next(START + 60) == (small[0], 0), "it is not held against them"
    write(store, *(sample(f"a{number:031x}", size=700 << 10) for number in range(5)))
    store.begin(START)
    assert store.defer_bundle("d" * 64, START, START + 60) == 2
    store.commit()
    store.close()


def test_what_is_larger_than_everything_may_be_is_dropped_alone(tmp_path: Path) -> None:
    store = opened(tmp_path / "outbox.db")
    write(store, sample("1" * 32))
    tally = write(store, sample("2" * 32, size=MAX_BYTES))
    assert (+tally.dropped, tally.kept, store.waiting) == (Counter({"too_large": 1}), Counter(), 1)
    store.close()


@pytest.mark.parametrize("size", [200, 3000, 9000, 50_000])
def test_the_bound_is_one_of_the_file(tmp_path: Path, size: int) -> None:
    path, limit = tmp_path / "outbox.db", 1 << 20
    store = opened(path, limit)
    keys = (f"{number:032x}" for number in range(2 * limit // size))
    for some in batched(keys, 50):
        write(store, *(sample(key, size=size) for key in some))
    assert 0.8 * limit < store.bytes <= limit
    store.close()
    assert path.stat().st_size <= 1.1 * limit


def test_what_is_no_database_is_told_from_what_cannot_be_opened(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.db"
    nonsense.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        opened(nonsense)
    assert broken(caught.value)
    with pytest.raises(sqlite3.OperationalError) as missing:
        opened(tmp_path / "nowhere" / "outbox.db")
    assert not broken(missing.value)


def test_another_form_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(sqlite3.DatabaseError, match="its form is 99") as caught:
        opened(path)
    assert broken(caught.value)


def test_a_file_is_set_aside_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).write_text(suffix)
    assert set_file_aside(path, lambda: 17.0).name == "outbox.db.broken-17"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("outbox.db.broken-17", "outbox.db.broken-17-shm", "outbox.db.broken-17-wal"),
    ]
