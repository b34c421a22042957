"""How many requests may be under way at the same time, so that they are answered in time: found out live.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), as TCP does it (RFC 5681), and for requests
`AIMDLimit` of Netflix's concurrency-limits: late answers make the limit smaller by a tenth, answers in time
make it larger by one for as many of them as it lets in at a time. As in TCP, those that were let in before
the last cut do not cut again. While nobody is late it also grows with time, so that a quiet hour
leaves nothing of a bad minute.
"""

_CUT = 0.9
_CALM_S = 1.0  # after the last late answer; then it grows with time
_PER_S = 5.0


class Limit:
    """A number of requests between two bounds; it begins with the larger."""

    def __init__(self, least: int, most: int) -> None:
        """Raises `ValueError` unless 1 <= `least` <= `most`."""
        if not 1 <= least <= most:
            raise ValueError(f"a limit lies between 1 or more and no less than that, not {least} and {most}")
        self._least = least
        self._most = most
        self._limit = float(most)
        self._at = self._cut_at = self._late_at = float("-inf")

    def value(self, now: float) -> int:
        """How many may be under way `now`, in seconds on a monotonic clock."""
        return self._most if self._limit >= self._most else int(self._grown(now))

    def ended(self, began: float, now: float, *, in_time: bool) -> None:
        """Take note of a request that was let in at `began` and has ended `now`, both on that clock."""
        if in_time and self._limit >= self._most:
            return
        limit = self._grown(now)
        if in_time:
            limit += 1 / limit
        else:
            self._late_at = now
        if not in_time and began > self._cut_at:
            limit *= _CUT
            self._cut_at = now
        self._limit, self._at = min(max(limit, self._least), self._most), now

    def _grown(self, now: float) -> float:
        if self._limit >= self._most:
            return float(self._most)
        calm_s = now - max(self._at, self._late_at + _CALM_S)
        return min(self._limit + _PER_S * max(calm_s, 0.0), self._most)
