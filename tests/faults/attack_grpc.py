"""Sends hostile messages and frames over gRPC and judges how each call ends."""

import asyncio
import contextlib
import math
from collections.abc import Iterable
from typing import Any

import grpc

from protos import open_inference_pb2 as oip
from tests.faults.attack import Findings, Pace, fault_of
from tests.faults.mutate_grpc import HEALTH, GrpcCase

STATUS = b"tandem_status"
_PATIENCE_S = 5.0
_READ_S = 0.5
Code = grpc.StatusCode
# What a caller's own fault may be called; the first is none.
ALLOWED = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.UNIMPLEMENTED,
}


class GrpcAttack:
    """Sends cases over one channel, each as a call of its own."""

    def __init__(self, port: int, findings: Findings) -> None:
        self._port = port
        self.findings = findings

    async def send(
        self, cases: Iterable[tuple[int, GrpcCase]], *, rate: float = math.inf, lanes: int = 4
    ) -> None:
        """Make all calls, so many a second and so many at a time."""
        left = iter(cases)
        pace = Pace(rate)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:

            async def lane() -> None:
                for number, case in left:
                    await pace.wait()
                    await self._one(channel, number, case)

            async with asyncio.TaskGroup() as group:
                for _ in range(lanes):
                    group.create_task(lane())

    async def frames(
        self, cases: Iterable[tuple[int, bytes]], *, rate: float = math.inf, lanes: int = 8
    ) -> None:
        """Send each over a connection of its own, so many a second, and wait a moment for what the service
        says to it."""
        left = iter(cases)
        pace = Pace(rate)

        async def lane() -> None:
            for number, data in left:
                await pace.wait()
                self.findings.cases += 1
                try:
                    said, fault = await self._connection(data), ""
                except OSError as error:
                    said, fault = "closed", f"the port takes no connections: {error}"
                self.findings.note(f"frames {number}", data, said, fault)
                if fault:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())

    async def _connection(self, data: bytes) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        said = b""
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(_READ_S):
                while more := await reader.read(1 << 16):
                    said += more
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return "spoken to" if said else "hung up on"

    async def _one(self, channel: grpc.aio.Channel, number: int, case: GrpcCase) -> None:
        self.findings.cases += 1
        name = f"case {number} ({case.kind}, {case.method.rpartition('/')[2]})"
        code, words = await _call(channel, case)
        allowed = ALLOWED | {Code.DEADLINE_EXCEEDED} if case.timed else ALLOWED
        fault = "" if code in allowed else f"{code.name}: {words[:200]}"
        if not fault and code is not Code.OK and not case.method.startswith(HEALTH):  # which says no words
            fault = fault_of(words)
        self.findings.note(name, case.data, code.name, fault)


async def _call(channel: grpc.aio.Channel, case: GrpcCase) -> tuple[Code, str]:
    """How the call ended, and in which words; on a stream, how its one request did."""
    path = f"/{case.method}"
    try:
        if not case.streamed:
            unary: Any = channel.unary_unary(path)
            await unary(case.data, timeout=_PATIENCE_S)
            return Code.OK, ""
        call: Any = channel.stream_stream(path)(timeout=_PATIENCE_S)
        await call.write(case.data)
        await call.done_writing()
        async for answer in call:
            if STATUS in answer:
                return _streamed(answer)
        return await call.code(), await call.details()
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    except asyncio.InvalidStateError:  # the call ended while we wrote
        return await call.code(), await call.details()


def _streamed(answer: bytes) -> tuple[Code, str]:
    message = oip.ModelStreamInferResponse.FromString(answer)
    name = message.infer_response.parameters[STATUS.decode()].string_param
    return getattr(Code, name, Code.UNKNOWN), message.error_message
