"""Who is let in: at most so many at a time, and only who is likely to be answered in time.

What is foreseen from the line and from what runs have cost decides for each request; what nobody foresees,
such as slow decoding or a busy machine, is seen in late answers, and makes the number smaller that is let in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from edge_node.request import MOST_MARGIN, Ask, priority_of
from edge_node.runner import Runner
from edge_node.settings import Settings
from edge_node.waiting import Timed
from inference_core.concurrency import Limit
from inference_core.errors import Overloaded
from inference_core.priority import Priority

# By how much waits are taken to be longer than those of lately, and the share of its time after which an
# answer is late: what chance and the rest of the node may take.
_MARGIN = 1.1
_LATE = 0.9
_TELLING_S = 0.002  # the least wait that says something about how waits are foreseen
_FOLLOW = 0.1  # how much one wait says
_MOST = 2.0  # times as long as foreseen, at most: longer ones are stalls
REASONS = ("full", "limit", "deadline", "expired", "displaced")


@dataclass(frozen=True, slots=True)
class Place:
    """What one who is let in may count on.

    A run that would end after `due`, a time on the clock, is not begun once it has waited; infinite where no
    wait is to blame. `foreseen_s` are the seconds that it was expected to wait for a run.
    """

    due: float = math.inf
    foreseen_s: float = 0.0


def create_limit(settings: Settings) -> Limit | None:
    """The limit that the settings ask for: it leaves every worker enough to do. None for none."""
    if not settings.adaptive_limit:
        return None
    return Limit(min(2 * settings.workers, settings.max_inflight), settings.max_inflight)


_ANYWHERE = Place()


class Admission:
    """Counts the samples that are being answered, and those of them that wait for the cloud."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_inflight: int,
        limit: Limit | None,
        clock: Callable[[], float],
        on_shed: Callable[[Priority, str], object],
        lag: Callable[[], float] = lambda: 0.0,
        reserve_s: float = 0.0,
    ) -> None:
        """`max_inflight` bounds the samples being answered; `limit` those of them that are at work here, None
        for letting in whom there is room for, in time or not. `clock` is the runner's; `on_shed` is told the
        class of each request that is turned away, and why: one of `REASONS`. `lag` says how many seconds late
        the event loop is: what a request has waited before anyone knew of it. `reserve_s` are the seconds
        that an answer takes until it is sent."""
        self._runner = runner
        self._most = max_inflight
        self._limit = limit
        self._clock = clock
        self._on_shed = on_shed
        self._lag = lag
        self._reserve_s = reserve_s
        self._slip = dict.fromkeys(Priority, 1.0)  # how many times longer than foreseen waits have been
        self.inflight = 0
        self.away = 0

    @property
    def limit(self) -> int:
        """How many samples may be at work here now."""
        return self._most if self._limit is None else self._limit.value(self._clock())

    def admit(self, ask: Ask, count: int, *, goes_up: bool) -> Place:
        """Room for `count` samples like `ask`, all or none: until `leave`.

        `goes_up` says that the cloud is asked before any run here: then neither the line nor the limit
        matters. Raises `Overloaded`.
        """
        priority, place, crowd = priority_of(ask), _ANYWHERE, self._crowd(count, goes_up)
        if self._limit is not None:
            due = self._due(ask)
            place = Place(due) if goes_up else self._place(ask.model.edge, priority, count, due)
        if crowd is not None and not (count == 1 and self._runner.displace(priority)):
            words, why = crowd
            raise Overloaded(words, self._runner.drain_s or 1.0, why)
        self.inflight += count
        return place

    def _due(self, ask: Ask) -> float:
        """The time on the clock by which a run must have ended, for its answer to be in time."""
        wants_s = ask.wants_ms / 1000
        return ask.arrived + wants_s - min(self._reserve_s + self._lag(), wants_s * MOST_MARGIN)

    def _crowd(self, count: int, goes_up: bool) -> tuple[str, str] | None:
        """Why there is no room for `count` more, in words and in one word; None where there is."""
        here = self.inflight - self.away
        if self.inflight + count > self._most:
            words, most, why = f"{self.inflight} samples are being answered", self._most, "full"
        elif here and not goes_up and here + count > self.limit:
            words, most, why = f"{here} samples are at work while answers are late", self.limit, "limit"
        else:
            return None
        return f"{words} and {count} more asked for, the limit is {most}", why

    def leave(self, count: int) -> None:
        """So many samples are no longer being answered."""
        self.inflight -= count

    def answered(self, ask: Ask, place: Place, queue_s: float, seconds: float) -> None:
        """A request took `seconds` here, the time at the cloud not counted; `queue_s` of them it waited."""
        if self._limit is not None:
            self._waited(ask, place, queue_s)
            usual_ms = ask.model.defaults.deadline_ms or 0
            took_ms = (seconds + self._lag()) * 1000
            self._ended(ask, took_ms <= _LATE * max(ask.wants_ms, usual_ms))

    def refused(self, ask: Ask, error: Overloaded, place: Place = _ANYWHERE) -> None:
        """A request was turned away, at once or after it had waited in its place."""
        self._on_shed(priority_of(ask), error.why)
        if error.why == "expired":
            self._waited(ask, place, self._clock() - ask.arrived)
            self._ended(ask, in_time=False)

    def _waited(self, ask: Ask, place: Place, queue_s: float) -> None:
        """Learn how much longer than foreseen waits are."""
        if place.foreseen_s > _TELLING_S:
            priority = priority_of(ask)
            times = min(queue_s / place.foreseen_s, _MOST)
            self._slip[priority] += _FOLLOW * (times - self._slip[priority])

    def _ended(self, ask: Ask, in_time: bool) -> None:
        if self._limit is not None:
            self._limit.ended(ask.arrived, self._clock(), in_time=in_time)

    def _place(self, model: Timed, priority: Priority, count: int, deadline: float) -> Place:
        """Raises `Overloaded` where the wait makes it late. Who cannot be in time whatever the others do is
        let in, since waiting is not to blame, unless the wait alone is over the deadline."""
        foreseen_s = self._runner.wait_s(model, priority)
        if not foreseen_s and count == 1:
            return Place(deadline)
        cost = model.cost
        own_s = cost.seconds(1) or 0.0
        if count > 1:
            own_s = max(own_s, count * (cost.each(model.max_batch) or 0.0))
        left_s, wait_s = deadline - self._clock(), foreseen_s * self._slip[priority] * _MARGIN
        fits = own_s <= left_s
        if wait_s > left_s or (fits and wait_s + own_s > left_s):
            raise Overloaded(
                f"deadline_ms: {max(left_s, 0) * 1000:.0f} ms are left, "
                f"an answer would take {(wait_s + own_s) * 1000:.0f} ms",
                wait_s,
                "deadline",
            )
        # Of several samples, the last wait for the first, too: that says nothing of the line.
        return Place(deadline if fits else math.inf, foreseen_s if count == 1 else 0.0)
