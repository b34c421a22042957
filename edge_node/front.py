"""The first that sees a request: those for inference go straight to their handler, all others to the app.

A framework's routing, its middleware and its request objects cost more than a small model's run, so the two
routes that carry tensors do without. What they accept and answer is in the documentation all the same.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_node.keys import Key, Keyring
from edge_node.refusals import Refusals
from inference_core.body import single
from inference_core.errors import Unauthenticated
from inference_core.http_connection import REFUSED, vouch


@dataclass(frozen=True, slots=True)
class Call:
    """A request for inference. `headers` are lower-case; `receive` gives the body, a part at a time."""

    model: str
    version: str
    headers: Mapping[bytes, bytes]
    query: bytes
    receive: Receive

    def header(self, name: bytes) -> str:
        """A header's value, empty for none."""
        return self.headers.get(name, b"").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Reply:
    """A body, its type, and further headers, lower-case."""

    body: bytes
    media_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


Handler = Callable[[Call], Awaitable[Reply]]
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})


class Front:
    """An ASGI application in front of another."""

    def __init__(
        self,
        app: ASGIApp,
        refusals: Refusals,
        *,
        predict: Handler,
        infer: Handler,
        keyring: Keyring | None = None,
    ) -> None:
        """`predict` answers `POST /v1/models/{model}/predict`, `infer` answers
        `POST /v2/models/{model}[/versions/{version}]/infer`; `app` all else. With a keyring, all but health
        is for those who show a key of it."""
        self._app = app
        self._refusals = refusals
        self._predict = predict
        self._infer = infer
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        found = self._route(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._pass_on(scope, receive, send)
            return
        handler, model, version = found
        call = Call(model, version, dict(scope["headers"]), scope["query_string"], receive)
        status = 200
        try:
            if self._keyring is not None:
                self._keyring.admit(_key(self._keyring, call.headers), model)
                vouch(scope)
            if scope["method"] != "POST":
                raise HTTPException(405, headers={"Allow": "POST"})
            if len(call.headers) != len(scope["headers"]):
                single(scope["headers"])
            reply = await handler(call)
            vouch(scope)
        except Exception as error:  # noqa: BLE001 - a bug must cost one request, not the connection
            status, reply = self._refused(scope, error)
        await _answer(status, reply, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is not for inference goes to the app: with a key, or where it is open."""
        if self._keyring is not None and scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                _key(self._keyring, dict(scope["headers"]))
                vouch(scope)
            except Unauthenticated as error:
                await _answer(*self._refused(scope, error), send)
                return
        await self._app(scope, receive, send)

    def _route(self, path: str) -> tuple[Handler, str, str] | None:
        match path.split("/"):
            case ["", "v1", "models", model, "predict"] if model:
                return self._predict, model, ""
            case ["", "v2", "models", model, "infer"] if model:
                return self._infer, model, ""
            case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
                return self._infer, model, version
        return None

    def _refused(self, scope: Scope, error: Exception) -> tuple[int, Reply]:
        told = scope.get("state", {}).get(REFUSED)
        if told is not None and isinstance(error, ClientDisconnect):
            refusal = self._refusals.tell(scope["path"], *told)
        else:
            refusal = self._refusals.refuse(scope["method"], scope["path"], error)
        headers = [(name.lower().encode(), text.encode()) for name, text in refusal.headers.items()]
        return refusal.status, Reply(orjson.dumps({"error": refusal.message}), headers=headers)


async def _answer(status: int, reply: Reply, send: Send) -> None:
    headers = [
        (b"content-length", b"%d" % len(reply.body)),
        (b"content-type", reply.media_type),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _key(keyring: Keyring, headers: Mapping[bytes, bytes]) -> Key:
    return keyring.find(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
