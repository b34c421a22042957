"""The edge node's HTTP application: its routes, its health, and how errors look."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_node.body import Intake
from edge_node.dataplane import Dataplane
from edge_node.device_api import create_device_api
from edge_node.joint import JointInference
from edge_node.metrics import Metrics
from edge_node.model_slot import ModelSlots
from edge_node.open_inference import create_open_inference
from inference_core.errors import Overloaded, TandemError, http_status

_DESCRIPTION = """
Send an image or a tensor; get the answer, who gave it (`source`), and why (`reason`).
The edge answers when its calibrated confidence is high enough, else the cloud; when the cloud is away,
late or busy the edge answers all the same, in time, and says so.
"""
_CLIENT_CLOSED = 499  # nginx's number for a client that hung up; nobody is left to read it
_log = logging.getLogger(__name__)


def create_app(
    slots: ModelSlots, joint: JointInference, dataplane: Dataplane, metrics: Metrics, intake: Intake
) -> FastAPI:
    """The app with the devices' interface, the Open Inference Protocol, `/healthz` and `/readyz`."""
    # Nodes without a way to the internet have documentation too: its scripts are served from here.
    app = FastAPIOffline(
        redoc_url=None, title="Tandem edge node", version=dataplane.version, description=_DESCRIPTION
    )
    app.include_router(create_device_api(slots, joint, intake))
    app.include_router(create_open_inference(dataplane, intake))

    @app.get("/healthz", tags=["health"], summary="Is the process alive")
    async def healthz() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", tags=["health"], summary="Are all models loaded and checked")
    async def readyz() -> Response:
        return JSONResponse({"ready": slots.ready}, 200 if slots.ready else 503)

    _add_error_handlers(app, metrics)
    return app


def _add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Every refusal is `{"error": "..."}`, as the Open Inference Protocol has it, and is counted here."""

    def refuse(
        request: Request, status: int, message: str, headers: dict[str, str] | None = None
    ) -> Response:
        api = "open_inference" if request.url.path.startswith("/v2") else "device"
        metrics.refused.labels(api, status).inc()
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(TandemError)
    async def tandem_error(request: Request, error: TandemError) -> Response:
        status = http_status(error)
        if status >= 500 and not isinstance(error, Overloaded):
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
            return refuse(request, status, "the model failed; the service's log has the details")
        retry = (
            {"Retry-After": str(max(1, round(error.retry_after_s)))}
            if isinstance(error, Overloaded)
            else None
        )
        return refuse(request, status, str(error), retry)

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return refuse(request, 400, f"{name}: {first['msg']}, got {first['input']!r:.100}")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        return refuse(
            request, error.status_code, f"{request.method} {request.url.path}: {error.detail}", headers
        )

    @app.exception_handler(ClientDisconnect)
    async def hung_up(request: Request, _: ClientDisconnect) -> Response:
        return refuse(request, _CLIENT_CLOSED, "the client hung up")

    @app.exception_handler(Exception)
    async def bug(request: Request, _: Exception) -> Response:
        return refuse(request, 500, "internal error; the service's log has the details")


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the node, which has more to stop than this server."""
        yield


class HttpServer:
    """The listening HTTP server; `port` is known as soon as it exists."""

    def __init__(self, app: FastAPI, host: str, port: int, grace_s: float) -> None:
        """Bind `host:port`, where port 0 picks a free one. Raises `OSError` for a taken port."""
        self._socket = socket.create_server((host, port))
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
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
