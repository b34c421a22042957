"""gRPC calls as strangers make them: without a message, with half a message, with one that is none.

gRPC for Python answers the last with INTERNAL and a stack trace, and waits for the others for ever. So each
unary call is taken as a stream of which one message is read, within a time and within what may be held in
memory; on the wire that is the same. Both services register their methods through a `Guard`.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from inference_core.body import Intake
from inference_core.errors import TandemError, TooSlow, grpc_status, shortened
from inference_core.wire import parse

Handlers = Mapping[str, Any]  # gRPC's own, by the names of their methods
Context = grpc.aio.ServicerContext[Any, Any]
MIN_PING_S = 10  # an edge pings an idle connection every 20 s; gRPC would scold it for that


def options(
    *, message_bytes: int, metadata_bytes: int, connections: int, calls: int, handshake_s: float
) -> list[tuple[str, int]]:
    """A server's options that bound what one client may send: bytes of a message and of a call's metadata,
    connections to the server, calls on one of them, and the seconds until it speaks HTTP/2."""
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        # The first is what clients are told, the second what is refused.
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", calls),
        ("grpc.server_handshake_timeout_ms", round(handshake_s * 1000)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]


class Methods:
    """Stands in for a server where generated code registers a service's methods, and keeps them."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, _: Iterable[object]) -> None:
        """Nothing: the same methods come once more, by their names."""

    def add_registered_method_handlers(self, _: str, handlers: Handlers) -> None:
        """Keep the methods."""
        self.handlers = dict(handlers)


class Guard:
    """Stands before a service's methods."""

    def __init__(self, intake: Intake, patience_s: float, on_refused: Callable[[str], object]) -> None:
        """A call's message must come within `patience_s` seconds and find room in `intake`; `on_refused` is
        told the name of the status of each call that no method has seen."""
        self._intake = intake
        self._patience_s = patience_s
        self._on_refused = on_refused

    def serve(self, server: grpc.aio.Server, service: str, handlers: Handlers) -> None:
        """Register those of `handlers` that take one message behind this guard, the others as they are."""
        methods = Default().FindServiceByName(service).methods_by_name
        guarded = {
            name: handler
            if handler.request_streaming
            else self._guarded(handler, GetMessageClass(methods[name].input_type))
            for name, handler in handlers.items()
        }
        server.add_registered_method_handlers(service, guarded)

    def _guarded(self, handler: Any, kind: type[Message]) -> Any:
        answer, raw = handler.unary_stream or handler.unary_unary, handler.request_deserializer is None

        async def call(_: object, context: Context) -> Any:
            data = await self._message(context)
            try:
                with self._intake.holding(len(data)):
                    request = data if raw else parse(kind, data)
                    return await answer(request, context)
            except TandemError as error:  # of the guard's own: a method ends its call by itself
                await self._end(context, error)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)

    async def _end(self, context: Context, error: TandemError) -> None:
        self._on_refused(grpc_status(error))
        await context.abort(grpc.StatusCode[grpc_status(error)], shortened(str(error)))

    async def _message(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._patience_s):
                data = await context.read()
        except TimeoutError:
            limit = f"{self._patience_s:g} s, that is the limit"
            await self._end(context, TooSlow(f"message: not complete after {limit}"))
        if not isinstance(data, bytes):  # gRPC may have refused it already, as too large
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "message: there is none")
        return data
