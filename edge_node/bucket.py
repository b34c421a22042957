"""A bucket of tokens: so many requests a second, and so many at once after a pause."""


class Bucket:
    """Holds up to `burst` tokens, begins full, and gains `rate` a second. Pure: the time is passed in."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Take a token at `now`, monotonic and in seconds: 0, or the seconds until there will be one."""
        if self._at is not None:
            self._tokens = min(self.burst, self._tokens + max(now - self._at, 0.0) * self.rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self.rate
