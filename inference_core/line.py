"""Who waits for a run, in the order in which they will get one: by class, and in a class fair to callers.

A class goes before those after it. So that nobody is passed over for ever, a class that waits gets one run
after `PATIENCE` of better ones in a row. Within a class, callers take turns by how much work they brought,
however much more they have waiting (start-time fair queueing: Goyal, Vin and Cheng, 1996); one caller's own
come in order.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from inference_core.priority import Priority

PATIENCE = 8
_AT_ONCE = -1.0  # a tag that goes before all others
_MANY = 64  # callers remembered beyond those who wait, before those with nothing to remember are forgotten


class Waiter(Protocol):
    """Who may wait. `work` is how much it asks for, in whatever unit its line counts; `tag` is the line's."""

    priority: Priority
    caller: str
    work: float
    tag: float


_W = TypeVar("_W", bound=Waiter)
_tag = attrgetter("tag")


class _Class(Generic[_W]):
    """Those of one priority."""

    def __init__(self) -> None:
        self.waiters: list[_W] = []
        self.work = 0.0
        self.passed = 0
        self.by_caller: dict[str, float] = {}  # the work of each that waits
        self._now = 0.0  # the tag of who was taken last
        self._next: dict[str, float] = {}  # the least tag of each caller's next

    def add(self, waiter: _W, at_once: bool) -> None:
        caller, work = waiter.caller, waiter.work
        if at_once:
            waiter.tag = _AT_ONCE
        else:
            waiter.tag = max(self._now, self._next.get(caller, 0.0))
            self._next[caller] = waiter.tag + work
        if not self.waiters or self.waiters[-1].tag <= waiter.tag:
            self.waiters.append(waiter)
        else:
            insort(self.waiters, waiter, key=_tag)
        self.work += work
        self.by_caller[caller] = self.by_caller.get(caller, 0.0) + work

    def remove(self, gone: set[int], taken: bool) -> None:
        """Without those of these identities, who were `taken` for a run or left."""
        left: list[_W] = []
        unused: dict[str, float] = {}
        for waiter in self.waiters:
            caller, work = waiter.caller, waiter.work
            if id(waiter) not in gone:
                left.append(waiter)
                if caller in unused and waiter.tag > self._now:
                    waiter.tag = max(self._now, waiter.tag - unused[caller])
                continue
            self.work -= work
            self.by_caller[caller] -= work
            if taken:
                self._now = max(self._now, waiter.tag)
            elif waiter.tag >= 0:
                unused[caller] = unused.get(caller, 0.0) + work
        for caller, work in unused.items():  # what was not done is not held against them
            # who was passed over by others with later turns may have been forgotten
            self._next[caller] = max(self._now, self._next.get(caller, 0.0) - work)
        if unused:
            left.sort(key=_tag)
        self.waiters = left
        if not left:  # nothing is left to be fair about
            self.work, self.passed, self._now = 0.0, 0, 0.0
            self.by_caller, self._next = {}, {}
        elif len(self._next) > len(left) + _MANY:
            self.by_caller = {caller: work for caller, work in self.by_caller.items() if work > 0}
            self._next = {caller: tag for caller, tag in self._next.items() if tag > self._now}

    def ahead(self, caller: str, work: float) -> float:
        """What of these comes before a new one of this caller: of each other no more than it would have."""
        own = self.by_caller.get(caller, 0.0)
        if len(self.by_caller) <= (caller in self.by_caller):
            return own
        fair = own + work
        return own + sum(min(theirs, fair) for name, theirs in self.by_caller.items() if name != caller)


class Line(Generic[_W]):
    """Everyone who waits for one machine."""

    def __init__(self) -> None:
        self._classes: dict[Priority, _Class[_W]] = {priority: _Class() for priority in Priority}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[_W]:
        """Everyone, whose turn is next first."""
        kinds = list(self._classes.values())
        for at, kind in enumerate(kinds):
            if kind.waiters and kind.passed >= PATIENCE:
                kinds.insert(0, kinds.pop(at))
                break
        return chain.from_iterable([kind.waiters for kind in kinds])

    @property
    def work(self) -> float:
        """The work of everyone who waits."""
        return sum(kind.work for kind in self._classes.values())

    def count(self, priority: Priority) -> int:
        """How many of this class wait."""
        return len(self._classes[priority].waiters)

    def add(self, waiter: _W, *, at_once: bool = False) -> None:
        """One more; `at_once` before all others of its class but those who came so before."""
        self._classes[waiter.priority].add(waiter, at_once)
        self._size += 1

    def take(self, batch: list[_W]) -> None:
        """These, of whom the first was the next, are run now."""
        self._remove(batch, taken=True)
        better = True
        for priority, kind in self._classes.items():
            if priority is batch[0].priority:
                kind.passed, better = 0, False
            elif kind.waiters and not better:
                kind.passed += 1

    def leave(self, waiters: list[_W]) -> None:
        """These wait no longer; who is not there has left already."""
        self._remove(waiters, taken=False)

    def ahead(self, priority: Priority, caller: str = "", work: float = 0.0) -> float:
        """The work that would be done before that of a new one, `work` of this class from this caller."""
        total = 0.0
        for other, kind in self._classes.items():
            if other is priority:
                return total + (kind.ahead(caller, work) if kind.waiters else 0.0)
            total += kind.work
        raise RuntimeError(f"unknown priority {priority!r}")

    def displaced(self, priority: Priority, caller: str, work: float, needed: float) -> list[_W]:
        """Who has to go, so that a new one has `needed` more room; nobody where so much is not to be had.

        First the newest of the least class below it, of the caller with most there. Then, in its own class,
        the newest of whoever would still have more than its caller.
        """
        going: list[_W] = []
        for other, kind in reversed(self._classes.items()):
            own = kind.by_caller.get(caller, 0.0) + work if other is priority else 0.0
            held = dict(kind.by_caller)
            newest: dict[str, list[_W]] = {}
            for waiter in kind.waiters:
                newest.setdefault(waiter.caller, []).append(waiter)
            while needed > 0 and held:
                most = max(held, key=lambda name: held[name])
                if held[most] <= own or not newest.get(most):
                    break
                gone = newest[most].pop()
                held[most] -= gone.work
                needed -= gone.work
                going.append(gone)
            if other is priority:
                break
        return going if needed <= 0 else []

    def _remove(self, waiters: Iterable[_W], taken: bool) -> None:
        gone: dict[Priority, set[int]] = {}
        for waiter in waiters:
            gone.setdefault(waiter.priority, set()).add(id(waiter))
        for priority, those in gone.items():
            kind = self._classes[priority]
            before = len(kind.waiters)
            kind.remove(those, taken)
            self._size -= before - len(kind.waiters)
