"""What the link to the cloud is like now, learned from the escalations themselves. Pure; no clock of its own.

A line says how long so many bytes take; beside it stands, for each size of message, how far transfers of
like size have been off it: a link that is quick with small messages and slow with large ones is found out by
the first large one. Both forget, by count and by time. A sudden change is told by a two-sided CUSUM (Page,
1954) over the residuals; then nearly everything is forgotten at once. A transfer that is overdue says "at
least so slow" while it is still under way, and makes the link `lost` until something is heard again.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from edge_node.regression import LEAST, Regression

MEMORY = 30  # transfers after which about a third of the weight is left
FADE_S = 60.0  # and seconds
_LEAST_NOISE, _MOST_NOISE = 0.03, 1.0  # of a transfer's time, as a share of it
_FLOOR_S = 2e-4  # the clocks and the loops on both sides are not better than this
_SLACK, _ALARM, _CLIP = 0.75, 5.0, 4.0  # of the CUSUM, in standard deviations
_STRIKING = 2.0  # from which a transfer is one of the changed link, when it turns out to have changed
_MOST_AHEAD = 0.5  # of a transfer's time; where more was waiting, it says little of the link
_DOUBT = 0.5  # of its time, that an overdue answer may be off by
_UNSETTLED = 0.1  # the noise that is reckoned with when the link has changed
_RECENT = 8  # transfers that may turn out to be the first of a changed link
_LONGEST_S = 120.0  # nobody waits longer: what seems to have taken more was a jump of the clock
_LONG_AGO = -1e18
_HURRY_S = 0.1  # that anything may be late, without being overdue
_SLOWER = 1.5  # what an answer that did not come is taken to have needed, in terms of the wait for it
_FADE_STEP_S = 1.0
_NOISE_MEMORY, _LIKE_MEMORY = 10.0, 10.0  # transfers
_SETTLED = 5  # transfers after a change
_HUBER = 1.5  # standard deviations from which a transfer counts for less

_Heard = tuple[int, int, float]  # bytes up, bytes down, seconds


@dataclass(frozen=True, slots=True)
class Transfer:
    """A guess at one exchange of messages: seconds, and one standard deviation of them."""

    seconds: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class Trip:
    """One exchange under way: when it began, its bytes up, how long it waits for those sent before it, and
    after how many seconds an answer that has not come is not to be expected soon."""

    began: float
    up: int
    ahead: float
    patience: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The link as it is known: seconds, bytes per second, and the share of each that it may be off by.

    `age` is the seconds since anything was heard, infinite before. `lost` says that what was sent last is
    overdue.
    """

    round_trip: float
    round_trip_spread: float
    up: float
    up_spread: float
    down: float
    down_spread: float
    age: float
    lost: bool


@dataclass(slots=True)
class _Like:
    """How transfers of one size have been off the line: a logarithm of a ratio, and how often it was seen."""

    off: float = 0.0
    seen: float = 0.0


@dataclass(slots=True)
class _Drift:
    """The CUSUM: how far residuals have wandered to either side, and what stood out since they began to."""

    rise: float = 0.0
    fall: float = 0.0
    since: deque[_Heard] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def add(self, residual: float, transfer: _Heard) -> bool:
        """Whether the link has changed."""
        step = max(-_CLIP, min(_CLIP, residual))
        self.rise = max(0.0, self.rise + step - _SLACK)
        self.fall = max(0.0, self.fall - step - _SLACK)
        if self.rise == self.fall == 0.0:
            self.since.clear()
        elif abs(step) > _STRIKING:
            self.since.append(transfer)
        return max(self.rise, self.fall) > _ALARM

    def reset(self) -> list[_Heard]:
        """Begin anew; gives what came since the change."""
        since = list(self.since)
        self.rise = self.fall = 0.0
        self.since.clear()
        return since


class Link:
    """Told of every exchange with the cloud: `depart`, then `arrive`, `fail` or `abandon`, once.

    All times are seconds of one monotonic clock. A clock that goes backwards stands still here until it
    has caught up; one that jumps ahead makes what is known old, and so uncertain.
    """

    def __init__(self) -> None:
        self._regression = Regression()
        self._like: dict[int, _Like] = {}
        self._noise = 0.1
        self._drift = _Drift()
        self._now = _LONG_AGO  # finite, so that differences are numbers
        self._heard = self._busy_until = -math.inf
        self.departed = -math.inf  # when something was sent last
        self._unfaded = 0.0
        self._lost = False
        self._under_way: dict[int, Trip] = {}
        self.changes = 0
        self._since_change = 0

    def depart(self, now: float, up: int, cloud_s: float = 0.0) -> Trip:
        """A message of `up` bytes is being sent, of which the cloud is thought to make `cloud_s` seconds."""
        now = self.departed = self._tick(now)
        ahead = self._ahead(now)
        expected = self._guess(up, 0)
        whole = expected.seconds + ahead + max(cloud_s, 0.0)
        trip = Trip(now, up, ahead, whole + max(2 * whole, 8 * expected.spread, _HURRY_S))
        self._busy_until = now + ahead + self._regression.line().at[1] * up
        self._under_way[id(trip)] = trip
        return trip

    def arrive(self, trip: Trip, now: float, down: int, cloud_s: float) -> None:
        """The answer is here, `down` bytes; by its own account the cloud has had it for `cloud_s` seconds."""
        now = self._tick(now)
        if self._under_way.pop(id(trip), None) is None:
            return
        took = now - trip.began
        inside = min(max(cloud_s, 0.0), took) if math.isfinite(cloud_s) else 0.0
        if not self._under_way:
            self._busy_until = now
        self._heard = now
        was_lost, self._lost = self._lost, False
        if was_lost:  # what was known is of the time before
            self._change([])
        seconds = max(took - inside - trip.ahead, LEAST[0])
        if took > _LONGEST_S or trip.ahead > _MOST_AHEAD * took:
            return
        if was_lost and took > trip.patience:  # the link is slow now, or was away: which will be seen
            self._regression.add(trip.up, down, seconds, _DOUBT * seconds)
        else:
            self._learn(trip.up, down, seconds)

    def fail(self, trip: Trip, now: float) -> None:
        """There is no answer, and nobody waits for it any more: it would have taken longer than this."""
        now = self._tick(now)
        if self._under_way.pop(id(trip), None) is None:
            return
        waited = now - trip.began
        self._lost = self._lost or waited >= trip.patience
        least = waited - trip.ahead
        if self._guess(trip.up, 0).seconds < least <= _LONGEST_S:
            self._learn(trip.up, 0, _SLOWER * least)

    def abandon(self, trip: Trip) -> None:
        """What became of it says nothing about the link: it was cancelled, or turned down unsent."""
        self._under_way.pop(id(trip), None)

    def break_off(self, now: float) -> None:
        """The connection is gone: the link is lost until something is heard."""
        self._tick(now)
        self._lost = True

    def transfer(self, now: float, up: int, down: int) -> Transfer:
        """What sending `up` bytes now and hearing `down` back would take, without the cloud's own time."""
        now = self._tick(now)
        guess, ahead = self._guess(up, down), self._ahead(now)
        return Transfer(guess.seconds + ahead, guess.spread + ahead * self._noise)

    def estimate(self, now: float) -> Estimate:
        """Everything that is known."""
        now = self._tick(now)
        line = self._regression.line()
        (trip, up, down), spread = line.at, [line.covariance[i][i] ** 0.5 for i in range(3)]
        return Estimate(
            trip, spread[0] / trip, 1 / up, spread[1] / up, 1 / down, spread[2] / down,
            now - self._heard, self.lost(now),
        )  # fmt: skip

    @property
    def under_way(self) -> int:
        """Exchanges that have begun and not ended."""
        return len(self._under_way)

    @property
    def heard(self) -> float:
        """When something was heard last; minus infinity before."""
        return self._heard

    def lost(self, now: float) -> bool:
        """Whether something is overdue, or has been given up, and nothing was heard since."""
        now = self._tick(now)
        return self._lost or any(now - trip.began > trip.patience for trip in self._under_way.values())

    def _ahead(self, now: float) -> float:
        """Seconds that a message sent now waits until the last byte of those under way is sent."""
        pending = sum(trip.up for trip in self._under_way.values()) * self._regression.line().at[1]
        return max(0.0, min(self._busy_until - now, pending))

    def _tick(self, now: float) -> float:
        """The time, which never goes back; what is known fades while it passes."""
        if not now > self._now or not math.isfinite(now):
            return self._now
        self._unfaded += now - self._now
        self._now = now
        if self._unfaded > _FADE_STEP_S:
            kept = math.exp(-self._unfaded / FADE_S)
            self._regression.forget(kept)
            for like in self._like.values():
                like.seen *= kept
            self._unfaded = 0.0
        return now

    def _guess(self, up: int, down: int) -> Transfer:
        line = self._regression.line()
        like = self._like.get(_size(up), _UNSEEN)
        seconds = line.seconds(up, down) * math.exp(like.off * like.seen / (like.seen + 1))
        noise = self._noise * seconds + _FLOOR_S
        return Transfer(seconds, math.hypot(noise, line.deviation(up, down) / (1 + like.seen)))

    def _learn(self, up: int, down: int, seconds: float) -> None:
        expected = self._guess(up, down)
        residual = (seconds - expected.seconds) / expected.spread
        if self._drift.add(residual, (up, down, seconds)):
            self._change(self._drift.reset())
            return
        off = min(abs(seconds - expected.seconds) / expected.seconds, _MOST_NOISE)
        self._noise = min(max(self._noise + (1.25 * off - self._noise) / _NOISE_MEMORY, _LEAST_NOISE), 1.0)
        self._take(up, down, seconds)

    def _change(self, since: list[_Heard]) -> None:
        """The link is another one now: only what came `since` counts."""
        self.changes += 1
        self._since_change = 0
        self._regression.restart()
        for like in self._like.values():
            like.seen = 0.0
        self._noise = max(self._noise, _UNSETTLED)
        for transfer in since:
            self._take(*transfer)

    def _take(self, up: int, down: int, seconds: float) -> None:
        line = self._regression.line()
        guess = line.seconds(up, down)
        settled = min(self._since_change / _SETTLED, 1.0)
        deviation = self._noise * max(settled * guess, min(seconds, 2 * guess)) + _FLOOR_S
        outlying = abs(seconds - guess) / math.hypot(deviation, line.deviation(up, down)) / _HUBER
        self._regression.forget(1 - 1 / MEMORY)
        self._regression.add(up, down, seconds, deviation * min(max(outlying, 1.0), _CLIP) ** 0.5)
        self._since_change += 1
        weight = min(self._since_change / _SETTLED, 1.0)  # being off a line that moves says little
        like = self._like.setdefault(_size(up), _Like())
        off = math.log(seconds / self._regression.line().seconds(up, down))
        like.seen = min(like.seen + weight, _LIKE_MEMORY)
        like.off += (off - like.off) * weight / max(like.seen, weight)


def _size(up: int) -> int:
    """Messages of like size have the same number: two to every doubling."""
    return round(2 * math.log2(max(up, 1)))


_UNSEEN = _Like()
