"""A cloud that takes samples as it is told to, behind real gRPC, and the way up to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from inference_core.errors import CloudUnreachable, SwitchedOff
from protos import fleet_pb2 as pb


class FleetServer:
    """Keeps what it is sent. Answers each call with the next of `statuses`, the last one again and again; OK
    comes with the label 2, "blue". While it is `silent`, it answers nothing."""

    def __init__(self) -> None:
        self.received: list[pb.PutSampleRequest] = []
        self.statuses = [grpc.StatusCode.OK]
        self.details = "because"
        self.silent = False
        self.asked = asyncio.Event()

    async def put(self, request: pb.PutSampleRequest, context: Any) -> pb.PutSampleResponse:
        """The one method."""
        self.received.append(request)
        self.asked.set()
        if self.silent:
            await asyncio.Event().wait()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status is not grpc.StatusCode.OK:
            await context.abort(status, self.details)
        return pb.PutSampleResponse(index=2, label="blue")


class Way:
    """The way up to it; `away` and `switched_off` close it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.away = self.switched_off = False
        self.sent: list[int] = []

    def reachable(self) -> bool:
        return not self.away

    def uplink(self, nbytes: int) -> "Way":
        if self.away:
            raise CloudUnreachable("gone")
        if self.switched_off:
            raise SwitchedOff("by somebody")
        self.sent.append(nbytes)
        return self


@contextlib.asynccontextmanager
async def fleet_server() -> AsyncIterator[tuple[FleetServer, Way]]:
    """The server on a free port, and the way to it."""
    fleet, server = FleetServer(), grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        fleet.put, pb.PutSampleRequest.FromString, pb.PutSampleResponse.SerializeToString
    )
    methods: dict[str, Any] = {"PutSample": handler}
    server.add_registered_method_handlers("tandem.fleet.v1.Fleet", methods)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield fleet, Way(channel)
    finally:
        await server.stop(0)
