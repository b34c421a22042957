"""The doors of the cloud service while clients must show certificates: one for gRPC, one for HTTP.

The handshake has seen to it that a certificate is the authority's and holds today; here is decided whether it
is one of an edge node that may call. Health is for everyone who gets a connection.
"""

import inspect
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from cloud_service.identity import Context, caller_of
from cloud_service.nodes import Nodes
from inference_core.errors import Forbidden, TandemError, Unauthenticated, http_status
from inference_core.http_connection import PEER, vouch

OPEN_CALLS = "/grpc.health.v1.Health/"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
CALLER = "caller"  # in a request's state: the edge node that its sender's certificate names
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Found: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class CallGuard(grpc.aio.ServerInterceptor):
    """Lets calls pass whose certificate is that of a node which may call."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._guarded: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Found]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Found:
        """The handler of a call, behind the guard."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPEN_CALLS):
            return handler
        inner, guarded = self._guarded.get(method, (None, None))
        if guarded is None or inner is not handler:
            guarded = self._guard(handler)
            self._guarded[method] = handler, guarded
        return guarded

    def _guard(self, handler: Handler) -> Handler:
        kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
        behaviour = getattr(handler, kind)

        async def check(context: Context) -> None:
            try:
                caller_of(context, self._nodes)
            except Forbidden as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

        async def answer(request: Any, context: Context) -> Any:
            await check(context)
            return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            await check(context)
            async for message in behaviour(request, context):
                yield message

        streams = inspect.isasyncgenfunction(behaviour)
        return getattr(grpc, f"{kind}_rpc_method_handler")(  # type: ignore[no-any-return]
            stream if streams else answer, handler.request_deserializer, handler.response_serializer
        )


class HttpGuard:
    """An ASGI application in front of another: it lets requests pass that came with a certificate of a node
    which may call."""

    def __init__(self, app: ASGIApp, nodes: Nodes) -> None:
        self._app = app
        self._nodes = nodes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            state = scope.setdefault("state", {})
            try:
                state[CALLER] = self._check(state.get(PEER))
            except TandemError as error:
                await _refuse(error, send)
                return
            vouch(scope)
        await self._app(scope, receive, send)

    def _check(self, certificate: dict[str, Any] | None) -> str:
        if not certificate:
            raise Unauthenticated("certificate: none was shown, this service asks for one")
        ends = certificate.get("notAfter")  # looked at by the handshake, which may be long ago, or resumed
        if ends and ssl.cert_time_to_seconds(ends) < time.time():
            raise Unauthenticated("certificate: has ended")
        names = certificate.get("subjectAltName", ())
        return self._nodes.admit([name for kind, name in names if kind == "URI"])


async def _refuse(error: TandemError, send: Send) -> None:
    body = orjson.dumps({"error": str(error)})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": http_status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})
