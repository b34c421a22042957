"""Kept streams, against a real gRPC server that answers them in every order and in no order at all."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.breaker import Breaker, Rules, State
from edge_node.carrier import LARGE_BYTES, MODEL_INFER
from edge_node.cloud import Query
from edge_node.cloud_client import CloudClient
from edge_node.stream import STREAM_INFER
from inference_core.errors import CloudRefused, CloudUnavailable, CloudUnreachable, DeadlineExceeded
from inference_core.manifest import TensorInfo
from inference_core.tensors import from_request, get_parameters, to_response
from protos import open_inference_pb2 as oip

pytestmark = pytest.mark.anyio

PATIENCE_S = 30.0
Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[["StreamingCloud", Context], Awaitable[None]]


def query(value: float = 1.0, width: int = 3, **changes: Any) -> Query:
    """A request whose answer begins with `value`."""
    given: dict[str, Any] = {
        "id": "id-7",
        "model": "colors",
        "version": "1",
        "inputs": {"input": np.full((1, width), value, np.float32)},
        "parameters": {"tandem_bundle": "abc"},
        "expect": TensorInfo(name="logits", datatype="FP32", shape=(3,)),
    }
    return Query(**given | changes)


def answer(request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    value = from_request(request)["input"][0, 0]
    parameters = {"tandem_total_ms": 0.01}
    return to_response(
        "colors", "1", {"logits": np.array([[value, 0, 0]], np.float32)}, parameters, request.id
    )


def wrapped(response: oip.ModelInferResponse) -> bytes:
    return oip.ModelStreamInferResponse(infer_response=response).SerializeToString()


def failed(request_id: str, text: str, status: str = "") -> bytes:
    message = oip.ModelStreamInferResponse(error_message=text)
    message.infer_response.id = request_id
    if status:
        message.infer_response.parameters["tandem_status"].string_param = status
    return message.SerializeToString()


class StreamingCloud:
    """A server whose stream does what `behave` says, and which answers unary calls, or has neither."""

    def __init__(self, behave: Behaviour | None, **options: Any) -> None:
        self.behave = behave
        self.options = options
        self.streams = 0
        self.unary = 0
        self.requests: list[oip.ModelInferRequest] = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()

    async def start(self) -> None:
        given = {"grpc.so_reuseport": 0} | self.options
        self.server = grpc.aio.server(options=list(given.items()))
        service, _, unary = MODEL_INFER.strip("/").partition("/")
        handlers: dict[str, Any] = {unary: grpc.unary_unary_rpc_method_handler(self._infer)}
        if self.behave is not None:
            name = STREAM_INFER.rpartition("/")[2]
            handlers[name] = grpc.stream_stream_rpc_method_handler(self._stream)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()

    async def _infer(self, data: bytes, context: Context) -> bytes:
        self.unary += 1
        return answer(oip.ModelInferRequest.FromString(data)).SerializeToString()

    async def _stream(self, _: object, context: Context) -> None:
        assert self.behave is not None
        self.streams += 1
        await self.behave(self, context)

    async def read(self, context: Context) -> oip.ModelInferRequest | None:
        """The next request of a stream, None at its end."""
        data = await context.read()
        if data is grpc.aio.EOF:
            return None
        self.requests.append(oip.ModelInferRequest.FromString(data))
        self.began.set()
        return self.requests[-1]


async def prompt(cloud: StreamingCloud, context: Context) -> None:
    """Answer each request at once."""
    while (request := await cloud.read(context)) is not None:
        await context.write(wrapped(answer(request)))


async def silent(cloud: StreamingCloud, context: Context) -> None:
    """Answer when told to, and then everything."""
    requests = [await cloud.read(context)]
    await cloud.release.wait()
    for request in requests:
        if request is not None:
            await context.write(wrapped(answer(request)))
    await prompt(cloud, context)


def with_each(make: Callable[[oip.ModelInferRequest], bytes]) -> Behaviour:
    async def behave(cloud: StreamingCloud, context: Context) -> None:
        while (request := await cloud.read(context)) is not None:
            await context.write(make(request))

    return behave


class Rig:
    """A server, a client of it, and what the client told."""

    def __init__(
        self, cloud: StreamingCloud, client: CloudClient, breaker: Breaker, late: list[None]
    ) -> None:
        self.cloud, self.client, self.breaker, self.late = cloud, client, breaker, late

    async def infer(self, value: float = 1.0, timeout_s: float = PATIENCE_S, **changes: Any) -> float:
        return float((await self.client.infer(query(value, **changes), timeout_s)).logits[0, 0])

    async def fails(self, timeout_s: float = PATIENCE_S) -> CloudUnavailable:
        with pytest.raises(CloudUnavailable) as caught:
            await self.client.infer(query(), timeout_s)
        return caught.value


@contextlib.asynccontextmanager
async def rig(behave: Behaviour | None, options: dict[str, Any] | None = None) -> AsyncIterator[Rig]:
    cloud = StreamingCloud(behave, **(options or {}))
    await cloud.start()
    connected, late = asyncio.Event(), list[None]()
    breaker = Breaker(Rules(1), 1000.0, lambda: 1.0, lambda _: None)
    client = CloudClient(
        f"127.0.0.1:{cloud.port}",
        breaker,
        connect_timeout_s=0.5,
        patience_s=PATIENCE_S,
        max_message_bytes=4 << 20,
        on_connection=lambda _: connected.set(),
        on_late=lambda: late.append(None),
    )
    client.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await connected.wait()
        yield Rig(cloud, client, breaker, late)
    finally:
        cloud.release.set()
        await client.close()
        await cloud.server.stop(0)


async def test_requests_share_one_stream_and_carry_their_deadline() -> None:
    async with rig(prompt) as r:
        assert [await r.infer(float(value)) for value in range(20)] == list(range(20))
        assert (r.cloud.streams, r.cloud.unary) == (1, 0)
        request = r.cloud.requests[0]
        assert (request.model_name, request.model_version) == ("colors", "1")
        parameters = get_parameters(request.parameters)
        left_ms = parameters.pop("tandem_deadline_ms")
        assert isinstance(left_ms, float)
        assert PATIENCE_S * 500 < left_ms <= PATIENCE_S * 1000
        assert parameters == {"tandem_bundle": "abc"}


async def test_ids_are_unique_though_the_callers_are_not() -> None:
    async with rig(prompt) as r:
        await asyncio.gather(*(r.infer(float(value)) for value in range(50)))
        ids = [request.id for request in r.cloud.requests]
        assert len(set(ids)) == 50
        assert all(each.endswith("/id-7") for each in ids)


async def test_an_answer_says_what_it_cost() -> None:
    async with rig(prompt) as r:
        found = await r.client.infer(query(), PATIENCE_S)
        (request,) = r.cloud.requests
        assert found.bytes_up == request.ByteSize()
        assert found.bytes_down == len(wrapped(answer(request)))
        assert 0 < found.seconds < PATIENCE_S
        assert found.cloud_s == pytest.approx(1e-5)


@given(order=st.permutations(range(12)), chunks=st.integers(1, 12))
async def test_answers_in_any_order_find_their_requests(order: list[int], chunks: int) -> None:
    async def shuffled(cloud: StreamingCloud, context: Context) -> None:
        requests = [await cloud.read(context) for _ in order]
        for at in order:
            request = requests[at]
            assert request is not None
            await context.write(wrapped(answer(request)))
        await cloud.read(context)

    async with rig(shuffled) as r:
        values = [float(at + chunks) for at in range(len(order))]
        assert await asyncio.gather(*map(r.infer, values)) == values


async def test_many_callers_some_of_whom_leave() -> None:
    draw = random.Random(7)

    async def jumbled(cloud: StreamingCloud, context: Context) -> None:
        held: list[oip.ModelInferRequest] = []
        while (request := await cloud.read(context)) is not None:
            held.append(request)
            while len(held) > draw.randint(0, 3):
                await context.write(wrapped(answer(held.pop(draw.randrange(len(held))))))
            if len(cloud.requests) > 280:
                while held:
                    await context.write(wrapped(answer(held.pop())))

    async with rig(jumbled) as r:
        tasks = [asyncio.create_task(r.infer(float(value))) for value in range(300)]
        await r.cloud.began.wait()
        leavers = set(draw.sample(range(300), 15))
        for at in leavers:
            tasks[at].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for at, value in enumerate(found):
            assert value == float(at) or (at in leavers and isinstance(value, asyncio.CancelledError))
        assert r.breaker.state is State.CLOSED


async def test_large_messages_have_a_stream_of_their_own() -> None:
    async with rig(prompt) as r:
        await asyncio.gather(r.infer(), r.infer(width=LARGE_BYTES), r.infer(width=LARGE_BYTES), r.infer())
        assert (r.cloud.streams, len(r.cloud.requests)) == (2, 4)


async def test_a_late_answer_is_dropped_counted_and_given_to_nobody() -> None:
    async with rig(silent) as r:
        error = await r.fails(0.5)
        assert (type(error), error.reason) == (DeadlineExceeded, "deadline")
        assert error.bytes_up == r.cloud.requests[0].ByteSize()
        assert r.breaker.state is State.OPEN
        r.cloud.release.set()
        async with asyncio.timeout(PATIENCE_S):
            while not r.late:  # noqa: ASYNC110 - a number that changes, not an event
                await asyncio.sleep(0.001)
        assert len(r.late) == 1


async def test_a_caller_that_leaves_harms_no_one() -> None:
    async with rig(silent) as r:
        leaving = asyncio.create_task(r.infer(1.0))
        await r.cloud.began.wait()
        staying = asyncio.create_task(r.infer(2.0))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        r.cloud.release.set()
        assert await staying == 2.0
        assert len(r.late) == 1
        assert r.cloud.streams == 1


@pytest.mark.parametrize(
    ("status", "reason", "opens"),
    [
        ("RESOURCE_EXHAUSTED", "overloaded", False),
        ("FAILED_PRECONDITION", "version_mismatch", False),
        ("NOT_FOUND", "model_missing", False),
        ("INVALID_ARGUMENT", "input_refused", False),
        ("UNAVAILABLE", "cloud_unreachable", False),
        ("DEADLINE_EXCEEDED", "deadline", True),
        ("INTERNAL", "cloud_error", True),
        ("", "cloud_error", True),
        ("NONSENSE", "cloud_error", True),
    ],
)
async def test_an_error_has_its_own_status_and_the_stream_goes_on(
    status: str, reason: str, opens: bool
) -> None:
    async with rig(with_each(lambda request: failed(request.id, "as told", status))) as r:
        error = await r.fails()
        assert error.reason == reason
        assert "as told" in str(error)
        assert error.bytes_up == r.cloud.requests[0].ByteSize()
        assert (r.breaker.state is State.OPEN) == opens
        assert (r.cloud.streams, r.cloud.unary) == (1, 0)


async def test_an_error_that_names_no_request_fails_all_that_wait() -> None:
    async def both_then_fail(cloud: StreamingCloud, context: Context) -> None:
        await cloud.read(context)
        await cloud.read(context)
        await context.write(failed("", "somebody's fault"))
        await cloud.read(context)

    async with rig(both_then_fail) as r:
        errors = await asyncio.gather(r.fails(), r.fails())
        assert [error.reason for error in errors] == ["cloud_error"] * 2


async def test_answers_with_unknown_ids_are_dropped_and_counted() -> None:
    async def beside(cloud: StreamingCloud, context: Context) -> None:
        while (request := await cloud.read(context)) is not None:
            stranger = answer(request)
            stranger.id = "99/id-7"
            await context.write(wrapped(stranger))
            stranger.id = ""
            await context.write(wrapped(stranger))
            await context.write(wrapped(answer(request)))

    async with rig(beside) as r:
        assert [await r.infer(value) for value in (1.0, 2.0)] == [1.0, 2.0]
        assert len(r.late) == 4


async def test_garbage_is_an_invalid_answer_and_ends_the_stream() -> None:
    async with rig(with_each(lambda _: b"\xff" * 40)) as r:
        error = await r.fails()
        assert (type(error), error.reason) == (CloudRefused, "invalid_answer")
        assert r.breaker.state is State.OPEN


async def test_nonsense_in_one_answer_leaves_the_stream_to_the_others() -> None:
    def nonsense(request: oip.ModelInferRequest) -> bytes:
        response = answer(request)
        if from_request(request)["input"][0, 0] == 1.0:
            response.outputs[0].name = "other"
        return wrapped(response)

    async with rig(with_each(nonsense)) as r:
        error = await r.fails()
        assert (error.reason, error.bytes_up) == ("invalid_answer", r.cloud.requests[0].ByteSize())
    async with rig(with_each(nonsense)) as r:
        assert await r.infer(2.0) == 2.0


async def test_a_server_without_streams_is_asked_by_calls_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "edge_node.carrier")
    async with rig(None) as r:
        found = await asyncio.gather(*map(r.infer, (1.0, 2.0, 3.0)))
        assert [*found, await r.infer(4.0)] == [1.0, 2.0, 3.0, 4.0]
        assert r.cloud.unary == 4
        assert r.breaker.state is State.CLOSED
    assert sum("answers no streams" in record.message for record in caplog.records) == 1


async def test_a_stream_that_always_fails_is_done_without() -> None:
    async def refuses(cloud: StreamingCloud, context: Context) -> None:
        await cloud.read(context)
        await context.abort(grpc.StatusCode.UNKNOWN, "no streams today")

    async with rig(refuses) as r:
        assert [await r.infer(value) for value in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
        assert (r.cloud.streams, r.cloud.unary) == (1, 3)


async def test_a_stream_that_ends_well_loses_no_request() -> None:
    async def short(cloud: StreamingCloud, context: Context) -> None:
        request = await cloud.read(context)
        assert request is not None
        await context.write(wrapped(answer(request)))
        await cloud.read(context)  # and ends without having answered this one

    async with rig(short) as r:
        assert [await r.infer(float(value)) for value in range(6)] == list(range(6))
        assert (r.cloud.streams, r.cloud.unary) == (3, 3)
        assert r.breaker.state is State.CLOSED


async def test_a_message_too_large_for_the_server_is_refused_alone() -> None:
    async with rig(prompt, {"grpc.max_receive_message_length": 200_000}) as r:
        assert await r.infer() == 1.0
        large = asyncio.create_task(r.client.infer(query(width=100_000), PATIENCE_S))
        others = [asyncio.create_task(r.infer(2.0, width=LARGE_BYTES // 2)) for _ in range(3)]
        with pytest.raises(CloudRefused, match="RESOURCE_EXHAUSTED"):
            await large
        assert [await other for other in others] == [2.0] * 3
        assert await r.infer(3.0, width=LARGE_BYTES // 2) == 3.0
        assert r.cloud.streams > 2, "streams are gone on with"


async def test_a_cloud_that_dies_fails_what_was_on_its_way() -> None:
    async with rig(silent) as r:
        calls = [asyncio.create_task(r.fails()) for _ in range(3)]
        await r.cloud.began.wait()
        await r.cloud.server.stop(0)
        errors = await asyncio.gather(*calls)
        assert {type(error) for error in errors} == {CloudUnreachable}
        assert r.breaker.state is State.CLOSED


async def test_close_ends_what_is_on_its_way_as_a_lost_connection() -> None:
    async with rig(silent) as r:
        call = asyncio.create_task(r.fails())
        await r.cloud.began.wait()
        await r.client.close()
        assert isinstance(await call, CloudUnreachable)


async def test_a_stream_is_replaced_before_its_connection_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_node.carrier.STREAM_AGE_S", 0.0)
    async with rig(silent) as r:
        first = asyncio.create_task(r.infer(1.0))
        await r.cloud.began.wait()
        r.cloud.behave = prompt
        assert [await r.infer(value) for value in (2.0, 3.0)] == [2.0, 3.0]
        assert r.cloud.streams == 3
        r.cloud.release.set()
        assert await first == 1.0, "the old stream brings what it was asked"


async def test_no_request_is_lost_when_connections_are_let_go() -> None:
    let_go = {"grpc.max_connection_age_ms": 300, "grpc.max_connection_age_grace_ms": 2000}
    for _ in range(3):  # the machine may have stood still for longer than a new connection is waited for
        async with rig(prompt, let_go) as r:
            if not (lost := await _lost(r, 2.0)):
                assert r.cloud.streams > 3
                assert r.breaker.state is State.CLOSED
                break
    assert lost == 0


async def _lost(r: Rig, seconds: float) -> int:
    """How many of the requests of so long were not answered."""
    loop = asyncio.get_running_loop()
    ends, asked, lost = loop.time() + seconds, 0, 0
    while loop.time() < ends:
        asked += 1
        try:
            assert await r.infer(float(asked)) == asked
        except CloudUnavailable:
            lost += 1
    return lost
