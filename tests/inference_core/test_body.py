"""Reading a body with a limit, from any stream of chunks."""

import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
from starlette.requests import ClientDisconnect

from inference_core.body import Body, Intake, read_question, single
from inference_core.errors import InvalidInput, Overloaded, TooLarge

pytestmark = pytest.mark.anyio


class Stream:
    """A request whose body comes in these chunks; None is a client that hangs up."""

    def __init__(self, chunks: Sequence[bytes | None], content_length: bytes | None = None) -> None:
        self._chunks = list(chunks)
        self.read = 0
        self.headers = {} if content_length is None else {b"content-length": content_length}

    def into(self, intake: Intake) -> AbstractAsyncContextManager[Body]:
        """The body as `intake` reads it."""
        return intake.read(self.headers, self._receive)

    async def _receive(self) -> dict[str, object]:
        chunk = self._chunks.pop(0) if self._chunks else b""
        self.read += 1
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}


async def read_body(stream: Stream, limit: int) -> Body:
    """A body read alone."""
    async with stream.into(Intake(limit, 100)) as body:
        return body


@pytest.mark.parametrize("chunks", [[b"abcd"], [b"a", b"b", b"c", b"d"], [b"", b"abcd", b""]])
@pytest.mark.parametrize("content_length", [None, b"4"])
async def test_whole_body(chunks: list[bytes], content_length: bytes | None) -> None:
    assert await read_body(Stream(chunks, content_length), 4) == b"abcd"


async def test_declared_length_over_the_limit_is_refused_unread() -> None:
    stream = Stream([b"abcde"], b"5")
    with pytest.raises(TooLarge, match="body: 5 bytes, the limit is 4"):
        await read_body(stream, 4)
    assert stream.read == 0


@pytest.mark.parametrize("content_length", [None, b"1", b"-5", b"abc", "²".encode("latin-1"), b"9" * 5000])
async def test_body_over_the_limit_is_refused_as_soon_as_it_is(content_length: bytes | None) -> None:
    stream = Stream([b"abc", b"de", b"f"], content_length)
    with pytest.raises(TooLarge, match="body: over the limit of 4 bytes"):
        await read_body(stream, 4)
    assert stream.read == 2


@pytest.mark.parametrize("chunks", [[], [b""], [b"", b""]])
async def test_empty_body(chunks: list[bytes]) -> None:
    with pytest.raises(InvalidInput, match="body: is empty"):
        await read_body(Stream(chunks), 4)


async def test_client_that_hangs_up() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(Stream([b"a", None]), 4)


async def test_bodies_share_one_limit_until_they_are_answered() -> None:
    intake = Intake(4, 6)
    async with Stream([b"abcd"]).into(intake):
        async with Stream([b"ab"]).into(intake) as fits:
            assert fits == b"ab"
        with pytest.raises(Overloaded, match="bodies of 6 bytes are held, the limit is 6"):
            async with Stream([b"ab", b"c"]).into(intake):
                pass
        with pytest.raises(Overloaded), intake.holding(3):
            pass
    async with Stream([b"abcd"]).into(intake) as body:
        with intake.holding(2):
            assert body == b"abcd"


async def test_a_refused_or_broken_body_is_held_no_longer() -> None:
    intake = Intake(4, 4)
    for chunks, error in (([b"abc", b"de"], TooLarge), ([b"abc", None], ClientDisconnect)):
        with pytest.raises(error):
            async with Stream(chunks).into(intake):
                pass
    async with Stream([b"abcd"]).into(intake) as body:
        assert body == b"abcd"


@pytest.mark.parametrize(
    "name",
    ["content-encoding", "content-length", "content-type", "inference-header-content-length", "x-request-id"],
)
def test_a_header_that_says_what_the_body_is_comes_once(name: str) -> None:
    pair = (name.encode(), b"a")
    assert single([pair, (b"accept", b"a"), (b"accept", b"b")]) == {name.encode(): b"a", b"accept": b"b"}
    with pytest.raises(InvalidInput, match=f"{name}: is given 2 times, the limit is 1"):
        single([pair, (b"accept", b"a"), pair])


async def test_a_question_is_short() -> None:
    async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    assert await read_question(chunks(b"a" * 4000, b"b" * 96)) == b"a" * 4000 + b"b" * 96
    with pytest.raises(TooLarge, match="body: over the limit of 4096 bytes"):
        await read_question(chunks(b"a" * 4000, b"b" * 97))


async def test_memory_is_not_taken_for_what_is_only_declared() -> None:
    size, intake = 64 << 20, Intake(64 << 20, 64 << 20)
    stream = Stream([b"a", None], b"%d" % size)
    tracemalloc.start()
    try:
        with pytest.raises(ClientDisconnect):
            async with stream.into(intake):
                pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert intake.held == 0
