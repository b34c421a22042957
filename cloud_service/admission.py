"""Who may wait for a run of one model: as many as there is room for, and only who is likely to be in time.

What is foreseen from the line and from what runs have cost decides for each call; what nobody foresees, such
as runs of other models, is seen in late answers, and makes the number smaller that is let in.
"""

import math
from collections.abc import Callable

from cloud_service.waiter import Waiter
from inference_core.batch_cost import BatchCost
from inference_core.concurrency import Limit
from inference_core.errors import DeadlineExceeded, Overloaded
from inference_core.line import Line
from inference_core.priority import Priority

_BELIEVED_S = 1.0  # how long the cost of the last run speaks for the next
_MARGIN = 1.2  # by how much waits are taken to be longer than foreseen
REASONS = ("full", "limit", "deadline", "expired", "displaced")


def _ignore(_: Priority, __: str) -> None:
    """Nobody wants to know."""


class Admission:
    """Watches one line and the run beside it."""

    def __init__(
        self,
        line: Line[Waiter],
        cost: BatchCost,
        *,
        max_queue: int,
        max_batch_size: int,
        clock: Callable[[], float],
        limit: Limit | None = None,
        on_shed: Callable[[Priority, str], object] = _ignore,
    ) -> None:
        """`cost` is that of the runs, `max_queue` bounds the samples in `line`, and `limit` those that wait
        and run, by how late answers are; without it, who would be late for the wait is let in all the same.
        `on_shed` is told the class of each call that is refused for want of room or time, and why: one of
        `REASONS`."""
        self._line = line
        self._cost = cost
        self._max_queue = max_queue
        self._max_batch_size = max_batch_size
        self._clock = clock
        self._limit = limit
        self._on_shed = on_shed
        self._running = 0
        self._ends = -math.inf

    @property
    def limit(self) -> int:
        """How many samples may wait and run now."""
        most = self._max_queue + self._max_batch_size
        return most if self._limit is None else min(self._limit.value(self._clock()), most)

    def let_in(self, rows: int, deadline: float, priority: Priority, caller: str) -> list[Waiter]:
        """Who has to go so that `rows` more samples may wait. Raises `Overloaded` or `DeadlineExceeded`."""
        now = self._clock()
        if self.is_hopeless(rows, deadline, now):
            raise DeadlineExceeded("too little time is left for a run")
        try:
            self._check_wait(rows, deadline, priority, caller, now)
            return self._displaced(rows, priority, caller)
        except Overloaded as error:
            self._on_shed(priority, error.why)
            raise

    def is_hopeless(self, rows: int, deadline: float, now: float) -> bool:
        """Whether not even a run of its own would end in time. What has not been seen for a while is not
        believed: else one stall could refuse everyone for good."""
        if deadline <= now:
            return True
        return self._is_believed() and now + (self._cost.seconds(rows) or 0.0) > deadline

    def began(self, rows: int, now: float) -> None:
        """A run of so many samples begins."""
        self._running = rows
        self._ends = now + (self._cost.seconds(rows) or 0.0)

    def ended(self) -> None:
        """The run is over."""
        self._running, self._ends = 0, -math.inf

    def answered(self, waiter: Waiter, infer_s: float) -> None:
        """A call has been answered by a run of `infer_s` seconds, late or not; when it is late for its run
        alone, nobody is to blame."""
        if self._limit is None:
            return
        now = self._clock()
        in_time = now <= waiter.deadline
        if in_time or waiter.enqueued + infer_s <= waiter.deadline:
            self._limit.ended(waiter.enqueued, now, in_time=in_time)

    def expire(self, waiter: Waiter, now: float) -> None:
        """Tell a call that it is not run any more: for those before it, unless its time is over."""
        could = waiter.enqueued + (self._cost.seconds(waiter.rows) or 0.0) <= waiter.deadline
        if self._limit is not None and could:
            self._limit.ended(waiter.enqueued, now, in_time=False)
        if self._limit is None or not could or now >= waiter.deadline:
            waiter.future.set_exception(DeadlineExceeded("too little time is left for a run"))
            self._on_shed(waiter.priority, "expired")
        else:
            self.refuse(
                waiter, f"waited {now - waiter.enqueued:.3f} s for a run, and would be late", "expired"
            )

    def refuse(self, waiter: Waiter, words: str, why: str) -> None:
        """Tell a call that waits that it does so in vain."""
        if not waiter.future.done():
            waiter.future.set_exception(Overloaded(words, self._drain_s(), why))
            self._on_shed(waiter.priority, why)

    def _is_believed(self) -> bool:
        age_s = self._cost.age_s
        return age_s is not None and age_s < _BELIEVED_S

    def _check_wait(self, rows: int, deadline: float, priority: Priority, caller: str, now: float) -> None:
        """Raise `Overloaded` where those before it would make a call late."""
        if self._limit is None or not self._running or not self._is_believed():
            return
        ahead = self._line.ahead(priority, caller, rows) * (self._cost.each(self._max_batch_size) or 0.0)
        wait_s = _MARGIN * (ahead + max(self._ends - now, 0.0))
        own_s = self._cost.seconds(rows) or 0.0
        if now + wait_s + own_s > deadline:
            raise Overloaded(
                f"{(deadline - now) * 1000:.0f} ms are left, "
                f"an answer would take {(wait_s + own_s) * 1000:.0f} ms",
                self._drain_s(),
                "deadline",
            )

    def _displaced(self, rows: int, priority: Priority, caller: str) -> list[Waiter]:
        """Who has to go for so many more samples; `Overloaded` where there is no room for them."""
        if not self._line:
            return []
        depth, most, why = int(self._line.work), self._max_queue, "full"
        if self.limit - self._running < most:
            most, why = max(self.limit - self._running, 0), "limit"
        if depth + rows <= most:
            return []
        going = self._line.displaced(priority, caller, rows, depth + rows - most)
        if not going:
            raise Overloaded(f"{depth} samples are waiting, the limit is {most}", self._drain_s(), why)
        return going

    def _drain_s(self) -> float:
        """The seconds until everyone who waits now has had a run."""
        each = self._cost.each(self._max_batch_size) or 0.0
        return self._line.work * each + max(self._ends - self._clock(), 0.0)
