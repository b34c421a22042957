"""Calls as strangers make them, over a real connection: what they are told, and that others are answered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from inference_core.body import Intake
from inference_core.calls import Guard, Methods, options
from inference_core.errors import Overloaded
from inference_core.grpc_server import create_server
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc

pytestmark = pytest.mark.anyio
SERVICE = "inference.GRPCInferenceService"
READY = f"/{SERVICE}/ModelReady"
Code = grpc.StatusCode


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Knows one method, which can be held back."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None

    async def ModelReady(self, request: oip.ModelReadyRequest, _: Any) -> oip.ModelReadyResponse:  # noqa: N802
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return oip.ModelReadyResponse(ready=request.name == "good")


class Rig:
    """A guarded server on a port, and a channel to it."""

    channel: grpc.aio.Channel

    def __init__(self, patience_s: float = 30.0, held: int = 1000, calls: int = 10) -> None:
        self.servicer = Servicer()
        self.intake = Intake(1000, held)
        self.refused: list[str] = []
        self.guard = Guard(self.intake, patience_s, self.refused.append)
        self._calls = calls
        self.server = self._build()
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def _build(self) -> grpc.aio.Server:
        bounds = options(message_bytes=1000, metadata_bytes=2000, connections=10, calls=10, handshake_s=5)
        server = create_server((), bounds, self._calls)
        methods = Methods()
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(self.servicer, methods)  # type: ignore[no-untyped-call]
        self.guard.serve(server, SERVICE, methods.handlers)
        return server

    async def ask(self, data: bytes = b"\x0a\x04good", metadata: Any = None) -> tuple[grpc.StatusCode, str]:
        """How a call with this message ends, and in which words."""
        try:
            async with asyncio.timeout(10):
                call: Any = self.channel.unary_unary(READY)
                return Code.OK, (await call(data, metadata=metadata)).hex()
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""


@contextlib.asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[Rig]:
    rig = Rig(**changes)
    await rig.server.start()
    rig.channel = grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}")
    try:
        yield rig
    finally:
        rig.servicer.gate.set()
        await rig.channel.close()
        await rig.server.stop(0)


@pytest.mark.parametrize("data", [b"\x0a\x7f", b"\x0a\x02\xff\xfe", b"\xff" * 20, b"\x0b"])
async def test_what_is_no_message_is_the_callers_fault(data: bytes) -> None:
    async with serving() as rig:
        code, words = await rig.ask(data)
        assert code is Code.INVALID_ARGUMENT
        assert words == "message: no ModelReadyRequest, or a text in it is not UTF-8"
        assert rig.refused == ["INVALID_ARGUMENT"]
        assert await rig.ask() == (Code.OK, "0801")


async def test_a_call_without_a_message() -> None:
    async with serving() as rig:
        call: Any = rig.channel.stream_unary(READY)()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert (caught.value.code(), caught.value.details()) == (
            Code.INVALID_ARGUMENT,
            "message: there is none",
        )


async def test_a_message_that_does_not_come() -> None:
    async with serving(patience_s=0.05) as rig:
        call: Any = rig.channel.stream_unary(READY)()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        assert caught.value.details() == "message: not complete after 0.05 s, that is the limit"
        assert rig.refused == ["DEADLINE_EXCEEDED"]


async def test_messages_share_one_limit_until_they_are_answered() -> None:
    async with serving(held=10) as rig:
        rig.servicer.gate.clear()
        first = asyncio.create_task(rig.ask())
        async with asyncio.timeout(10):
            while rig.intake.held != 6:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert await rig.ask() == (Code.RESOURCE_EXHAUSTED, "bodies of 6 bytes are held, the limit is 10")
        rig.servicer.gate.set()
        assert (await first)[0] is Code.OK
        rig.servicer.fault = ZeroDivisionError()
        assert (await rig.ask())[0] is Code.UNKNOWN
        assert rig.intake.held == 0


async def test_a_message_or_metadata_over_the_limit() -> None:
    async with serving() as rig:
        assert (await rig.ask(b"\x0a\xfd\x0f" + b"a" * 2045))[0] is Code.RESOURCE_EXHAUSTED
        code, _ = await rig.ask(metadata=[("x-long", "a" * 5000)])
        assert code is Code.RESOURCE_EXHAUSTED
        assert (await rig.ask())[0] is Code.OK


async def test_one_call_too_many() -> None:
    async with serving(calls=1) as rig:
        rig.servicer.gate.clear()
        first = asyncio.create_task(rig.ask())
        async with asyncio.timeout(10):
            while not rig.intake.held:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert (await rig.ask())[0] is Code.RESOURCE_EXHAUSTED
        rig.servicer.gate.set()
        assert (await first)[0] is Code.OK


def test_what_is_held_is_given_back_where_there_is_no_room() -> None:
    intake = Intake(10, 10)
    with pytest.raises(Overloaded), intake.holding(11):
        pass
    assert intake.held == 0
