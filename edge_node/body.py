"""Request bodies: read with a limit for each, and a limit for all that are held at the same time."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import Request

from inference_core.errors import InvalidInput, Overloaded, TooLarge


class Intake:
    """Counts the bytes of bodies in memory, so that many large ones cannot exhaust it together."""

    def __init__(self, max_body_bytes: int, max_held_bytes: int) -> None:
        """`max_body_bytes` bounds one body, `max_held_bytes` all that are being read or answered."""
        self.max_body_bytes = max_body_bytes
        self._max_held_bytes = max_held_bytes
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, counted as held until the block ends.

        Raises `InvalidInput` for none, `TooLarge` as soon as it is known to be over the limit, and
        `Overloaded` when there is no room for it now.
        """
        try:
            declared = int(request.headers.get("content-length", "0"))
        except ValueError:
            declared = 0  # the stream will tell
        if declared > self.max_body_bytes:
            raise TooLarge(f"body: {declared} bytes, the limit is {self.max_body_bytes}")
        body = bytearray()
        held = 0
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self.max_body_bytes:
                    raise TooLarge(f"body: over the limit of {self.max_body_bytes} bytes")
                self._take(len(chunk))
                held += len(chunk)
            if not body:
                raise InvalidInput("body: is empty")
            yield bytes(body)
        finally:
            self._held -= held

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count `size` more bytes as held, such as those of a body without its compression."""
        self._take(size)
        try:
            yield
        finally:
            self._held -= size

    def _take(self, size: int) -> None:
        if self._held + size > self._max_held_bytes:
            raise Overloaded(f"bodies of {self._held} bytes are held, the limit is {self._max_held_bytes}")
        self._held += size
