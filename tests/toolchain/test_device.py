"""A simulated device against a real edge node, and against servers that are none."""

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inference_core.errors import InvalidInput
from tests.toolchain.edge import BLUE, BLUE_TOO, BROKEN, RED, UNLABELLED
from toolchain.device import Device, EdgeFailed, play_all, play_at_rate, wait
from toolchain.images import LabelledImage
from toolchain.tally import Reply

MODELS = b'{"models":[{"name":"colors","labels":["red"],"deadline_ms":200,"threshold":0.8}]}'


@asynccontextmanager
async def server(*bodies: bytes) -> AsyncIterator[str]:
    """The URL of a server that answers with each of `bodies` in turn, and then not at all."""
    left = iter(bodies)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if (body := next(left, None)) is not None:
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                    writer.write(head.encode() + body)
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def send(edge: str, image: LabelledImage, **query: str) -> Reply:
    """The reply to one image."""

    async def scenario() -> Reply:
        async with Device(edge, "colors") as device:
            return await device.send(image, query)

    return asyncio.run(scenario())


def test_a_confident_answer(edge: str) -> None:
    reply = send(edge, RED)
    assert (reply.status, reply.error) == (200, "")
    assert (reply.source, reply.reason, reply.degraded) == ("edge", "confident", False)
    assert reply.right is True
    assert reply.confidence == pytest.approx(1.0, abs=0.01)
    assert (reply.image_bytes, reply.bytes_up) == (len(RED.data), 0)
    assert 0 < reply.open_ms <= reply.ms < 1000


@pytest.mark.parametrize(("image", "right"), [(BLUE, False), (BLUE_TOO, True), (UNLABELLED, None)])
def test_an_answer_is_held_against_the_label(edge: str, image: LabelledImage, right: bool | None) -> None:
    assert send(edge, image).right is right


def test_the_query_reaches_the_edge(edge: str) -> None:
    assert send(edge, BLUE, mode="edge").reason == "mode"
    assert send(edge, BLUE, threshold="0.1").reason == "confident"


def test_a_refusal_is_a_reply_with_the_edges_own_words(edge: str) -> None:
    assert send(edge, BROKEN).status == 400
    reply = send(edge, RED, mode="sideways")
    assert reply.status == 400
    assert reply.error.startswith("400: mode: ")


def test_latency_counts_from_when_the_request_was_due(edge: str) -> None:
    async def scenario() -> Reply:
        async with Device(edge) as device:
            return await device.send(RED, {}, time.monotonic() - 1)

    reply = asyncio.run(scenario())
    assert reply.ms == pytest.approx(reply.open_ms + 1000, abs=5)


def test_what_the_edge_serves(edge: str) -> None:
    async def scenario(model: str | None) -> None:
        async with Device(edge, model) as device:
            assert device.served.name == "colors"
            assert device.served.labels == {"red", "green", "blue"}
            assert (device.served.deadline_ms, device.served.threshold) == (200, 0.8)

    asyncio.run(scenario("colors"))
    asyncio.run(scenario(None))
    with pytest.raises(InvalidInput, match=r"model 'fruit' is not served; .* serves colors"):
        asyncio.run(scenario("fruit"))


async def enter(url: str) -> None:
    """Open a device on `url`."""
    async with Device(url):
        pass


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(EdgeFailed):
        asyncio.run(enter(url))


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EdgeFailed, match=f"no edge node at http://127.0.0.1:{port}: "):
        asyncio.run(enter(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize("body", [b"hello", b"{}", b'{"models":[{"name":"colors"}]}', b"[1]"])
def test_what_answers_is_no_edge_node(body: bytes) -> None:
    async def scenario() -> None:
        async with server(body) as url:
            await enter(url)

    with pytest.raises(EdgeFailed, match="is no edge node"):
        asyncio.run(scenario())


@pytest.mark.parametrize("body", [b"hello", b"{}", b'{"edge":null}', b"7"])
def test_an_answer_that_makes_no_sense_is_none(body: bytes) -> None:
    async def scenario() -> Reply:
        async with server(MODELS, body) as url, Device(url) as device:
            return await device.send(RED, {})

    reply = asyncio.run(scenario())
    assert (reply.status, reply.error) == (0, "the answer is not an edge node's")


def test_silence_is_not_waited_for_without_end() -> None:
    async def scenario() -> Reply:
        async with server(MODELS) as url, Device(url, answer_s=0.1) as device:
            return await device.send(RED, {})

    reply = asyncio.run(scenario())
    assert reply.status == 0
    assert "Timeout" in reply.error
    assert 100 <= reply.open_ms < 1000


def test_play_all_sends_every_image_once(edge: str) -> None:
    images = [RED] * 11 + [BLUE] * 7
    replies: list[Reply] = []

    async def scenario() -> None:
        async with Device(edge, connections=3) as device:
            await play_all(device, images, {}, 3, replies.append)

    asyncio.run(scenario())
    assert [reply.right for reply in replies].count(True) == 11
    assert len(replies) == 18
    # at no time are more than three open
    edges = sorted((t, d) for r in replies for t, d in ((r.sent_s, 1), (r.done_s, -1)))
    assert max(itertools.accumulate(step for _, step in edges)) <= 3


def test_play_at_rate_keeps_to_the_clock(edge: str) -> None:
    replies: list[Reply] = []

    async def scenario() -> None:
        async with Device(edge, connections=8) as device:
            stop = asyncio.Event()
            await play_at_rate(device, [RED] * 20, {}, 100, replies.append, stop=stop, max_open=8)

    asyncio.run(scenario())
    due = sorted(reply.due_s for reply in replies)
    assert [b - a for a, b in itertools.pairwise(due)] == pytest.approx([0.01] * 19)
    assert all(reply.sent_s >= reply.due_s - 0.001 for reply in replies)


def test_an_image_that_waits_for_others_waits_on_the_clock() -> None:
    replies: list[Reply] = []

    async def scenario() -> None:
        async with server(MODELS) as url, Device(url, connections=2, answer_s=0.1) as device:
            stop = asyncio.Event()
            await play_at_rate(device, [RED] * 4, {}, 1000, replies.append, stop=stop, max_open=2)

    asyncio.run(scenario())
    replies.sort(key=lambda reply: reply.due_s)
    waited_ms = [reply.ms - reply.open_ms for reply in replies]
    assert max(waited_ms[:2]) < 50 < min(waited_ms[2:])
    assert min(reply.ms for reply in replies[2:]) > 190


def test_playing_stops_when_told_and_waits_for_what_is_open(edge: str) -> None:
    replies: list[Reply] = []
    stop = asyncio.Event()

    def note(reply: Reply) -> None:
        replies.append(reply)
        if len(replies) == 5:
            stop.set()

    async def scenario() -> None:
        async with Device(edge, connections=4) as device:
            await play_at_rate(device, itertools.repeat(RED), {}, 200, note, stop=stop, max_open=4)

    asyncio.run(scenario())
    assert 5 <= len(replies) <= 9
    assert all(reply.status == 200 for reply in replies)


def test_waiting_ends_early_when_stopped() -> None:
    async def scenario() -> float:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        started = time.monotonic()
        await wait(stop, 30)
        await wait(stop, -1)
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 5
