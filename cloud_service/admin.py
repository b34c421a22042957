"""The cloud's HTTP side: health for orchestrators, what is served, for people, and the REST protocol."""

import asyncio
import contextlib
import math
import ssl
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from cloud_service.models import Models
from cloud_service.open_inference import ERROR_HANDLERS
from cloud_service.settings import Settings
from inference_core.connections import Connections
from inference_core.http_bounds import Bounds
from inference_core.listening import http_socket


def create_admin(models: Models, protocol: Sequence[BaseRoute] = ()) -> Starlette:
    """The app behind `/healthz`, `/readyz` and `/v1/models`, with the routes of `protocol` beside them."""

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def readyz(_: Request) -> JSONResponse:
        return JSONResponse({"ready": models.ready}, status_code=200 if models.ready else 503)

    async def list_models(_: Request) -> JSONResponse:
        return JSONResponse(
            {"models": [{"name": m.name, "version": m.version, "digest": m.digest} for m in models.all()]}
        )

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/v1/models", list_models),
            *protocol,
        ],
        exception_handlers=ERROR_HANDLERS,
    )
    app.router.redirect_slashes = False
    return app


def bounds(settings: Settings) -> Bounds:
    """What strangers may do on this port, by the settings."""
    return Bounds(
        connections=settings.max_connections,
        head_bytes=settings.max_header_bytes,
        head_s=settings.head_timeout_ms / 1000,
        body_s=settings.body_timeout_ms / 1000,
        idle_s=settings.idle_timeout_ms / 1000,
    )


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service, which has more to stop than this server."""
        yield


class HttpServer:
    """The listening HTTP server; `port` is known as soon as it exists."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        grace_s: float,
        connections: Connections | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind `host:port`, where port 0 picks a free one; HTTPS with `tls`. Raises `OSError` for a taken
        port."""
        self._connections = connections or Connections(Bounds())
        self._grace_s = grace_s
        self._socket = http_socket(host, port)
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app,
            http=self._connections.connect,  # type: ignore[arg-type]
            timeout_keep_alive=math.ceil(self._connections.bounds.idle_s),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        config.load()
        config.ssl = tls
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Answer requests from now on."""
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http")
        self._watch = asyncio.create_task(self._connections.watch(), name="connections")

    async def stop(self) -> None:
        """Finish the requests in flight, within the grace given, and close."""
        self._server.should_exit = True
        # What is not all there by then will not be: it is told so before uvicorn cuts it off.
        unfinished = asyncio.get_running_loop().call_later(0.8 * self._grace_s, self._connections.stop)
        if self._task is not None:
            await self._task
        unfinished.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self._socket.close()
