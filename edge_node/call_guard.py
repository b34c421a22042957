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

    def __init__(self, keyring: Keyring, on_refused: Callable[[], object]) -> None:
        """`on_refused` is told of each call that shows none."""
        self._keyring = keyring
        self._on_refused = on_refused

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
                self._on_refused()
                return _refusal(str(error))
        return await continuation(handler_call_details)


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
