"""Request bodies: read with a limit for each, and a limit for all that are held at the same time."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from inference_core.errors import InvalidInput, Overloaded, TooLarge

Body = bytes | bytearray
# Said twice, each of these would mean two things, and whoever stands in between might take the other one.
_ONCE = (
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"inference-header-content-length",
    b"x-request-id",
)
_MAX_QUESTION = 4096


def single(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Lower-case headers by name; `InvalidInput` where one that says what the body is comes twice."""
    pairs = list(headers)
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        for name in _ONCE:
            if names.count(name) > 1:
                raise InvalidInput(f"{name.decode()}: is given {names.count(name)} times, the limit is 1")
    return found


async def read_question(chunks: AsyncIterator[bytes]) -> bytes:
    """The body of a request that has hardly anything to say, from its parts. Raises `TooLarge`."""
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) > _MAX_QUESTION:
            raise TooLarge(f"body: over the limit of {_MAX_QUESTION} bytes")
    return body


class Intake:
    """Counts the bytes of bodies in memory, so that many large ones cannot exhaust it together."""

    def __init__(self, max_body_bytes: int, max_held_bytes: int) -> None:
        """`max_body_bytes` bounds one body, `max_held_bytes` all that are being read or answered."""
        self.max_body_bytes = max_body_bytes
        self._max_held_bytes = max_held_bytes
        self._held = 0

    @property
    def held(self) -> int:
        """The bytes that are held now."""
        return self._held

    def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> "_Reading":
        """A context in which the whole body is there, and counted as held until it ends.

        Entering it raises `InvalidInput` for no body, `TooLarge` as soon as it is known to be over the limit,
        `Overloaded` when there is no room for it now, and `ClientDisconnect`.
        """
        return _Reading(self, headers, receive)

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count `size` more bytes as held, such as those of a body without its compression."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

    def take(self, size: int) -> None:
        """Count `size` more bytes as held; `Overloaded` when there is no room for them now."""
        if self._held + size > self._max_held_bytes:
            raise Overloaded(f"bodies of {self._held} bytes are held, the limit is {self._max_held_bytes}")
        self._held += size

    def give_back(self, size: int) -> None:
        """Count `size` bytes as held no longer."""
        self._held -= size


class _Reading:
    """One body on its way in, and held until the context ends."""

    def __init__(self, intake: Intake, headers: Mapping[bytes, bytes], receive: Receive) -> None:
        self._intake = intake
        self._headers = headers
        self._receive = receive
        self._held = 0

    async def __aenter__(self) -> Body:
        try:
            return await self._read()
        except BaseException:
            self._intake.give_back(self._held)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._intake.give_back(self._held)

    async def _read(self) -> Body:
        declared = _declared(self._headers)
        limit = self._intake.max_body_bytes
        if declared > limit:
            raise TooLarge(f"body: {declared} bytes, the limit is {limit}")
        first, more = await self._chunk()
        if not more:
            body: Body = first
        else:
            # Never made at the size that is declared: to declare costs nothing, and is not counted as held.
            body = bytearray(first)
            while more:
                chunk, more = await self._chunk()
                body += chunk
        if not body:
            raise InvalidInput("body: is empty")
        return body

    async def _chunk(self) -> tuple[bytes, bool]:
        """The next part of the body, and whether more may follow."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        if self._held + len(chunk) > self._intake.max_body_bytes:
            raise TooLarge(f"body: over the limit of {self._intake.max_body_bytes} bytes")
        self._intake.take(len(chunk))
        self._held += len(chunk)
        return chunk, message.get("more_body", False)


def _declared(headers: Mapping[bytes, bytes]) -> int:
    """The body's length as its sender says; 0 where that says nothing, and the stream will tell."""
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0
