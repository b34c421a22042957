"""The door of the gRPC interface while devices must show keys: strangers' messages are not even read."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import grpc

from edge_node.keys import Key, Keyring
from inference_core.errors import Unauthenticated

OPEN_CALLS = "/grpc.health.v1.Health/"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Found: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class CallGuard(grpc.aio.ServerInterceptor):
    """Lets calls pass that show a key, and those for health."""

    def __init__(self, keyring: Keyring, on_refused: Callable[[str], object], open_calls: int = 100) -> None:
        """`on_refused` is told the name of the status of each call that is refused here: those that show no
        key, and those for health while `open_calls` of them are being answered."""
        self._keyring = keyring
        self._on_refused = on_refused
        self._open_calls = open_calls
        self._open = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Found]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Found:
        """The handler of a call, or one that refuses it."""
        if not handler_call_details.method.startswith(OPEN_CALLS):
            try:
                key_of(self._keyring, handler_call_details.invocation_metadata or ())
            except Unauthenticated as error:
                self._on_refused(grpc.StatusCode.UNAUTHENTICATED.name)
                return _refusal(str(error))
            return await continuation(handler_call_details)
        found = await continuation(handler_call_details)
        return None if found is None else self._few(found)

    def _few(self, handler: Handler) -> Handler:
        """So that strangers, who may watch the health for as long as they like, leave room for others."""
        inner: Any = handler.stream_stream or handler.stream_unary  # as `Guard` makes them

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if self._open >= self._open_calls:
                self._on_refused(grpc.StatusCode.RESOURCE_EXHAUSTED.name)
                words = f"calls for health: {self._open} are being answered, that is the limit"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
            self._open += 1
            try:
                return await inner(request, context)
            finally:
                self._open -= 1

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


def key_of(keyring: Keyring, metadata: Iterable[tuple[str, str | bytes]]) -> Key:
    """The key that a call shows in its metadata. Raises `Unauthenticated`."""
    shown = {"authorization": b"", "x-api-key": b""}
    for name, value in metadata:
        if name in shown:
            shown[name] = value if isinstance(value, bytes) else value.encode("utf-8")
    return keyring.find(shown["authorization"], shown["x-api-key"])


def _refusal(words: str) -> Handler:
    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, words)

    # As a stream, whatever the call is: a unary handler would be given the message, read and parsed.
    return grpc.stream_stream_rpc_method_handler(refuse)
