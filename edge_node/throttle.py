"""Client-side throttling: asks a cloud that turns many down less often. Pure; clock and chance are passed in.

From "Handling Overload" in Google's "Site Reliability Engineering": of `requests` made, `accepts` were not
turned down; the next is dropped here with probability max(0, (requests - K accepts) / (requests + 1)).
"""

import math
from collections.abc import Callable

K = 2.0
# Both counts decay with this time constant: what was ten seconds ago weighs less than a hundredth.
MEMORY_S = 2.0
# Some always get through, or else it would take the longer to notice that it is over the more were dropped:
# with these it is over within about three times the memory, at any rate of requests.
MOST = 0.9


class Throttle:
    """What has come of the requests to one cloud in the last seconds."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` gives random numbers from 0 to 1."""
        self._draw = draw
        self._requests = self._accepts = 0.0
        self._at = 0.0

    def allow(self, now: float) -> bool:
        """Whether to ask the cloud; where not, that counts as a request that was not accepted."""
        # Without a request that was turned down there is nothing to drop, and nothing to work out.
        if self._requests <= K * self._accepts:
            return True
        self._decay(now)
        if self._draw() >= self.dropped:
            return True
        self._requests += 1
        return False

    def told(self, now: float, *, accepted: bool) -> None:
        """A request was answered, or failed for another reason than that the cloud has too many."""
        self._decay(now)
        self._requests += 1
        self._accepts += accepted

    @property
    def dropped(self) -> float:
        """The share of requests that is dropped, as things were when anything was last counted."""
        return min(MOST, max(0.0, (self._requests - K * self._accepts) / (self._requests + 1)))

    def _decay(self, now: float) -> None:
        left = math.exp(min(0.0, self._at - now) / MEMORY_S)
        self._requests *= left
        self._accepts *= left
        self._at = now
