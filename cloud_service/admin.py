"""The cloud's HTTP side: health for orchestrators, what is served, for people, and the REST protocol."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from cloud_service.models import Models
from cloud_service.open_inference import ERROR_HANDLERS


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

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/v1/models", list_models),
            *protocol,
        ],
        exception_handlers=ERROR_HANDLERS,
    )


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service, which has more to stop than this server."""
        yield


class HttpServer:
    """The listening HTTP server; `port` is known as soon as it exists."""

    def __init__(self, app: Starlette, host: str, port: int, grace_s: float) -> None:
        """Bind `host:port`, where port 0 picks a free one. Raises `OSError` for a taken port."""
        self._socket = socket.create_server((host, port))
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Answer requests from now on."""
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http")

    async def stop(self) -> None:
        """Finish the requests in flight, within the grace given, and close."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()
