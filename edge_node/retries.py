"""How often a request may be sent again: as gRPC throttles its retries, so that a cloud in trouble is not
asked twice as much for it. Pure.

https://github.com/grpc/proposal/blob/master/A6-client-retries.md, "Throttling Retry Attempts and Hedged RPCs"
"""

MAX_TOKENS = 10.0
TOKEN_RATIO = 0.1


class Retries:
    """A count of tokens: a failure takes one, an answer gives a tenth. While there are no more than half as
    many as there can be, nothing is sent again."""

    def __init__(self) -> None:
        self._tokens = MAX_TOKENS

    @property
    def allowed(self) -> bool:
        """Whether something may be sent again now."""
        return self._tokens > MAX_TOKENS / 2

    def success(self) -> None:
        """A message was answered."""
        self._tokens = min(MAX_TOKENS, self._tokens + TOKEN_RATIO)

    def failure(self) -> None:
        """A message was lost, or one more was sent than there were requests."""
        self._tokens = max(0.0, self._tokens - 1.0)
