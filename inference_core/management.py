"""The management port: metrics for Prometheus, and what whoever operates the service may do.

It is apart from the ports of devices, edges and tools, and has threads of its own: it answers while the event
loop is stuck. Both services have the same one: a hole in it would be one in both.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import socketserver
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from inference_core.errors import BundleError, Overloaded, shortened
from inference_core.listening import family_of

Document = Mapping[str, Any]
Action = Callable[[Document], Awaitable[Document]]
_MAX_BODY_BYTES = 4096
_MAX_THREADS = 32  # one for each connection; more connections are closed at once
_POLL_S = 0.1  # how soon it notices that it is to stop
_PATIENCE_S = 120.0  # for the event loop, and for what it is asked to do
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 409: "Conflict", 413: "Content Too Large", 422: "Unprocessable Content",
    504: "Gateway Timeout",
}  # fmt: skip
_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is not done: the status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Management:
    """The listening server; `port` is known as soon as it exists."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int, token: str) -> None:
        """Bind `host:port`, where port 0 picks a free one. Raises `OSError` for a taken port.

        `token` is what `/admin` asks for, as `Authorization: Bearer`; where it is empty, only this machine
        may do anything there.
        """
        self._metrics = make_wsgi_app(registry)
        self._token = token.encode()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._actions: dict[tuple[str, str], Action] = {}
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {host}:{port}") from error
        self._server.set_app(self._answer)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="management", daemon=True
        )

    def add(self, method: str, path: str, action: Action) -> None:
        """Have `method` of `path` done by `action`, a document in and one out, on the loop of `start`.

        It may raise `Refused`, `BundleError` or `Overloaded`.
        """
        self._actions[method, path] = action

    def start(self) -> None:
        """Answer from now on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Close the port; who is being answered is not waited for."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: WSGIEnvironment, respond: StartResponse) -> Iterable[bytes]:
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        if path in ("/", "/metrics"):
            scraped: Iterable[bytes] = self._metrics(request, respond)
            return scraped
        status, document = 200, {}
        try:
            document = dict(self._do(method, path, request))
        except Refused as error:
            status, document = error.status, {"error": str(error)}
        if method != "GET" and path.startswith("/admin/"):
            said = document.get("error") or document.get("result") or json.dumps(document)
            line = f"{method} {shortened(path)} by {request.get('REMOTE_ADDR')}: {status}, {shortened(said)}"
            _log.info("%s", line.encode("unicode_escape").decode())  # one line, whatever the path holds
        body = json.dumps(document).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        respond(f"{status} {_REASONS[status]}", headers)
        return [body]

    def _do(self, method: str, path: str, request: WSGIEnvironment) -> Document:
        self._admit(request)
        action = self._actions.get((method, path))
        if action is None:
            known = path in {known for _, known in self._actions}
            raise Refused(405 if known else 404, f"{method} {path} is not done here")
        body = _document(request)
        if self._loop is None:
            raise Refused(409, "the service is still starting")
        done: Future[Document] = asyncio.run_coroutine_threadsafe(_await(action, body), self._loop)
        try:
            return done.result(_PATIENCE_S)
        except TimeoutError:
            done.cancel()
            raise Refused(504, f"not done within {_PATIENCE_S:g} s") from None
        except BundleError as error:
            raise Refused(422, str(error)) from error
        except Overloaded as error:
            raise Refused(409, str(error)) from error

    def _admit(self, request: WSGIEnvironment) -> None:
        """Raise `Refused` for whoever may not ask."""
        if "HTTP_ORIGIN" in request:
            raise Refused(403, "requests of web pages are not done here")
        if self._token:
            scheme, _, given = request.get("HTTP_AUTHORIZATION", "").partition(" ")
            known = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
            if scheme.lower() != "bearer" or not known:
                raise Refused(401, "Authorization: must be Bearer and the admin token")
        elif not ipaddress.ip_address(request["REMOTE_ADDR"]).is_loopback:
            raise Refused(403, "without an admin token, only this machine may ask")


async def _await(action: Action, body: Document) -> Document:
    return await action(body)


def _document(request: WSGIEnvironment) -> Document:
    """The JSON object in the body; an empty one where there is no body."""
    length = request.get("CONTENT_LENGTH") or "0"
    if not length.isascii() or not length.isdigit() or int(length) > _MAX_BODY_BYTES:
        raise Refused(413, f"Content-Length: must be a number up to {_MAX_BODY_BYTES}")
    try:
        content = json.loads(request["wsgi.input"].read(int(length)) or b"{}")
    except (ValueError, RecursionError, OSError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(content, dict):
        raise Refused(400, "the body must be a JSON object")
    return content


class _Handler(WSGIRequestHandler):
    timeout = 3.0  # seconds that a sender may be silent

    def handle(self) -> None:
        """One request; who goes away in the middle of it is nothing to tell of."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing: a scrape every few seconds is no news."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = family_of(host)
        self._room = threading.BoundedSemaphore(_MAX_THREADS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, if there is one left."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What that thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def server_bind(self) -> None:
        """Bind without asking the name service who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.socket.getsockname()[1])
        self.setup_environ()
