"""The edge node's HTTP application: its routes, its health, and how errors look."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_node.body import Intake
from edge_node.dataplane import Dataplane
from edge_node.device_api import create_device_api, create_predict
from edge_node.documentation import add_inference
from edge_node.front import Front
from edge_node.joint import JointInference
from edge_node.metrics import Metrics
from edge_node.model_slot import ModelSlots
from edge_node.open_inference import create_infer, create_open_inference
from edge_node.open_inference_schema import tell_refusals_as_they_are_sent
from edge_node.refusals import Refusals
from inference_core.errors import TandemError

_DESCRIPTION = """
Send an image or a tensor; get the answer, who gave it (`source`), and why (`reason`).
The edge answers when its calibrated confidence is high enough, else the cloud; when the cloud is away,
late or busy the edge answers all the same, in time, and says so.
"""


def create_app(
    slots: ModelSlots, joint: JointInference, dataplane: Dataplane, metrics: Metrics, intake: Intake
) -> Front:
    """The app with the devices' interface, the Open Inference Protocol, `/healthz` and `/readyz`."""
    # Nodes without a way to the internet have documentation too: its scripts are served from here.
    app = FastAPIOffline(
        redoc_url=None, title="Tandem edge node", version=dataplane.version, description=_DESCRIPTION
    )
    app.include_router(create_device_api(slots))
    app.include_router(create_open_inference(dataplane))

    @app.get("/healthz", tags=["health"], summary="Is the process alive")
    async def healthz() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", tags=["health"], summary="Are all models loaded and checked")
    async def readyz() -> Response:
        return JSONResponse({"ready": slots.ready}, 200 if slots.ready else 503)

    refusals = Refusals(metrics)
    _add_error_handlers(app, refusals)
    add_inference(app.openapi())
    tell_refusals_as_they_are_sent(app.openapi())
    return Front(
        app,
        refusals,
        predict=create_predict(slots, joint, intake),
        infer=create_infer(dataplane, intake),
    )


def _add_error_handlers(app: FastAPI, refusals: Refusals) -> None:
    """Every refusal is `{"error": "..."}`, as the Open Inference Protocol has it."""

    async def refuse(request: Request, error: Exception) -> Response:
        refusal = refusals.refuse(request.method, request.url.path, error)
        return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)

    for kind in (TandemError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, refuse)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the node, which has more to stop than this server."""
        yield


class HttpServer:
    """The listening HTTP server; `port` is known as soon as it exists."""

    def __init__(self, app: Front, host: str, port: int, grace_s: float) -> None:
        """Bind `host:port`, where port 0 picks a free one. Raises `OSError` for a taken port."""
        self._socket = socket.create_server((host, port))
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
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
