"""What a device got back, one `Reply` per request, and the figures of many: a `Tally`. Pure."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

OK = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """One request as its device saw it. Times are seconds of the monotonic clock.

    `due_s` is when it should have been sent, `sent_s` when it was. `status` is the HTTP status, or 0 where
    no answer came; then, and for every status but 200, `error` says why and the fields below it are empty.
    `right` is None where the image has no label that the model knows; `confidence` is the edge's, None
    where the edge model did not run.
    """

    due_s: float
    sent_s: float
    done_s: float
    image_bytes: int
    status: int
    error: str = ""
    source: str = ""
    reason: str = ""
    degraded: bool = False
    right: bool | None = None
    confidence: float | None = None
    bytes_up: int = 0

    @property
    def ms(self) -> float:
        """Milliseconds from when the request was due to its answer: what the device waited."""
        return (self.done_s - self.due_s) * 1000

    @property
    def open_ms(self) -> float:
        """Milliseconds from sending to the answer: what counts against the deadline."""
        return (self.done_s - self.sent_s) * 1000


@dataclass(slots=True)
class Tally:
    """Counts and latencies of replies; eight bytes each, so that a day of them fits in memory.

    Shares, latencies and means are those of the answered requests (status 200), and None without any.
    """

    sent: int = 0
    refused: int = 0
    unanswered: int = 0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    slowest_ms: float = 0.0
    _labelled: int = 0
    _right: int = 0
    _bytes_up: int = 0
    _image_bytes: int = 0
    _ms: "array[float]" = field(default_factory=lambda: array("d"))

    @classmethod
    def of(cls, replies: Iterable[Reply]) -> Self:
        """The tally of `replies`."""
        tally = cls()
        for reply in replies:
            tally.add(reply)
        return tally

    def add(self, reply: Reply) -> None:
        """Count one reply. `slowest_ms` is the longest any request, answered or not, was open."""
        self.sent += 1
        self.slowest_ms = max(self.slowest_ms, reply.open_ms)
        if reply.status != OK:
            self.refused += reply.status != 0
            self.unanswered += reply.status == 0
            self.errors[reply.error] += 1
            return
        self.answers[reply.source, reply.reason] += 1
        self.degraded += reply.degraded
        self._labelled += reply.right is not None
        self._right += reply.right is True
        self._bytes_up += reply.bytes_up
        self._image_bytes += reply.image_bytes
        self._ms.append(reply.ms)

    @property
    def answered(self) -> int:
        """Requests answered with 200."""
        return len(self._ms)

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those to images whose label is known."""
        return self._right / self._labelled if self._labelled else None

    @property
    def at_edge(self) -> float | None:
        """The share of answers that are the edge's own, fallbacks included."""
        return 1 - self.by_source()["cloud"] / self.answered if self.answered else None

    @property
    def bytes_up(self) -> float | None:
        """Mean bytes that went from the edge to the cloud."""
        return self._bytes_up / self.answered if self.answered else None

    @property
    def image_bytes(self) -> float | None:
        """Mean bytes of the images that were sent to the edge."""
        return self._image_bytes / self.answered if self.answered else None

    def percentiles_ms(self, *shares: float) -> list[float] | None:
        """The milliseconds within which these shares of the answers came, each above 0 and at most 1."""
        ordered = sorted(self._ms)
        return [percentile(ordered, share) for share in shares] if ordered else None

    def by_source(self) -> Counter[str]:
        """Answers by who gave them."""
        sources: Counter[str] = Counter()
        for (source, _), count in self.answers.items():
            sources[source] += count
        return sources


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the `ordered` values that `share` of them do not exceed (nearest rank)."""
    # a float like 0.95 * 100 may come out a hair above the whole number that it stands for
    rank = math.ceil(round(share * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


def figures(tally: Tally) -> tuple[str, str, str, str, str, str, str]:
    """Accuracy, share at the edge, p50, p95, p99 in ms, bytes up and image bytes, as text; `-` for none."""
    p50, p95, p99 = tally.percentiles_ms(0.5, 0.95, 0.99) or (None, None, None)
    return (
        _text(tally.accuracy, ".2%"),
        _text(tally.at_edge, ".1%"),
        *(_text(p50, ".1f"), _text(p95, ".1f"), _text(p99, ".1f")),
        *(_text(tally.bytes_up, ",.0f"), _text(tally.image_bytes, ",.0f")),
    )


def breakdown(counts: Counter[tuple[str, str]]) -> str:
    """Sources and reasons with their numbers, most frequent first: `edge (confident) 368, ...`."""
    return ", ".join(f"{source} ({reason}) {count}" for (source, reason), count in counts.most_common())


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
