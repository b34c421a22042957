"""The cloud client's signs of life, against a real gRPC server: padded, refused, silent, on trial."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from edge_node.breaker import Breaker, Rules, State
from edge_node.cloud_client import CloudClient
from inference_core.errors import BreakerOpen, CloudUnreachable, DeadlineExceeded
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc

pytestmark = pytest.mark.anyio
Context = grpc.aio.ServicerContext[Any, Any]


class Server(oip_grpc.GRPCInferenceServiceServicer):
    """Answers ServerLive, and keeps the sizes of what it was asked; or aborts, or says nothing."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.code: grpc.StatusCode | None = None
        self.silent = False

    async def ServerLive(  # noqa: N802 - the protocol's name
        self, request: oip.ServerLiveRequest, context: Context
    ) -> oip.ServerLiveResponse:
        self.sizes.append(request.ByteSize())
        if self.code is not None:
            await context.abort(self.code, "as told")
        if self.silent:
            await asyncio.Event().wait()
        return oip.ServerLiveResponse(live=True)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, int]]:
    servicer = Server()
    listening = grpc.aio.server()
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, listening)  # type: ignore[no-untyped-call]
    port = listening.add_insecure_port("127.0.0.1:0")
    await listening.start()
    yield servicer, port
    await listening.stop(0)


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(Rules(1), 0.0, jitter=lambda: 1.0, on_change=id)


@pytest.fixture
async def client(server: tuple[Server, int], breaker: Breaker) -> AsyncIterator[CloudClient]:
    made = connect(server[1], breaker)
    made.start()
    await connected(made)
    yield made
    await made.close()


def connect(port: int, breaker: Breaker, on_connection: Callable[[bool], object] = id) -> CloudClient:
    return CloudClient(
        f"127.0.0.1:{port}",
        breaker,
        connect_timeout_s=2.0,
        patience_s=5.0,
        max_message_bytes=1 << 20,
        on_connection=on_connection,
    )


async def connected(client: CloudClient) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await client.probe(0, 5.0)
            except CloudUnreachable:
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.parametrize("padding", [0, 1, 127, 128, 2_000, 128_000])
async def test_padding_travels_and_is_ignored(
    server: tuple[Server, int], client: CloudClient, padding: int
) -> None:
    before = len(server[0].sizes)
    assert await client.probe(padding, 5.0) == 2  # `live` is true: a tag and a 1
    size = server[0].sizes[before]
    assert padding <= size <= padding + 4


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED])
async def test_any_answer_is_a_sign_of_life(
    server: tuple[Server, int], client: CloudClient, code: grpc.StatusCode
) -> None:
    server[0].code = code
    assert await client.probe(0, 5.0) == 0


async def test_silence_and_a_cloud_that_goes_are_told_apart(
    server: tuple[Server, int], client: CloudClient
) -> None:
    server[0].silent = True
    with pytest.raises(DeadlineExceeded):
        await client.probe(0, 0.05)
    server[0].silent, server[0].code = False, grpc.StatusCode.UNAVAILABLE
    with pytest.raises(CloudUnreachable):
        await client.probe(0, 5.0)


async def test_nothing_is_sent_without_a_connection(breaker: Breaker) -> None:
    client = connect(1, breaker)
    with pytest.raises(CloudUnreachable):
        await client.probe(0, 0.2)
    await client.close()


async def test_where_a_trial_is_due_the_probe_is_the_trial(
    server: tuple[Server, int], client: CloudClient, breaker: Breaker
) -> None:
    def fail() -> State:
        permit = breaker.allow(1e9)
        assert permit is not None
        breaker.failure(permit, 1e9, 0.0)
        return breaker.state

    assert fail() is State.OPEN
    await client.probe(0, 5.0)
    assert str(breaker.state) == str(State.CLOSED)
    assert fail() is State.OPEN
    server[0].silent = True
    with pytest.raises(DeadlineExceeded):
        await client.probe(0, 0.05)
    assert breaker.state is State.OPEN


async def test_an_open_breaker_lets_no_probe_through(server: tuple[Server, int]) -> None:
    breaker = Breaker(Rules(1), 3600.0, jitter=lambda: 1.0, on_change=id)
    client = connect(server[1], breaker)
    client.start()
    await connected(client)
    permit = breaker.allow(1.0)
    assert permit is not None
    breaker.failure(permit, 5.0, 1e12)
    asked = len(server[0].sizes)
    with pytest.raises(BreakerOpen):
        await client.probe(0, 5.0)
    assert len(server[0].sizes) == asked
    await client.close()


async def test_a_healthy_link_does_not_hide_what_fails_on_it(
    client: CloudClient, server: tuple[Server, int]
) -> None:
    counting = Breaker(Rules(2), 3600.0, jitter=lambda: 1.0, on_change=id)
    other = connect(server[1], counting)
    other.start()
    await connected(other)
    for _ in range(2):
        permit = counting.allow(1.0)
        assert permit is not None
        counting.failure(permit, 5.0, 0.0)
        if counting.state is State.CLOSED:
            await other.probe(0, 5.0)
    assert counting.state is State.OPEN
    await other.close()
