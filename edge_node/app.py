"""The edge node's HTTP application: its routes, its health, and how errors look."""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_node.dataplane import Dataplane
from edge_node.device_api import create_device_api, create_predict
from edge_node.documentation import add_inference
from edge_node.front import Front
from edge_node.joint import JointInference
from edge_node.keys import Keyring
from edge_node.metrics import Metrics
from edge_node.model_slot import ModelSlots
from edge_node.open_inference import create_infer, create_open_inference
from edge_node.open_inference_schema import tell_refusals_as_they_are_sent
from edge_node.refusals import Refusals
from edge_node.settings import Settings
from inference_core.body import Intake
from inference_core.connections import Connections
from inference_core.errors import TandemError
from inference_core.http_bounds import Bounds
from inference_core.listening import http_socket

_DESCRIPTION = """
Send an image or a tensor; get the answer, who gave it (`source`), and why (`reason`).
The edge answers when its calibrated confidence is high enough, else the cloud; when the cloud is away,
late or busy the edge answers all the same, in time, and says so.
"""


def create_app(
    slots: ModelSlots,
    joint: JointInference,
    dataplane: Dataplane,
    metrics: Metrics,
    intake: Intake,
    keyring: Keyring | None = None,
) -> Front:
    """The app with the devices' interface, the Open Inference Protocol, `/healthz` and `/readyz`; with a
    keyring, all but health is for those who show a key of it."""
    # Nodes without a way to the internet have documentation too: its scripts are served from here.
    app = FastAPIOffline(
        redoc_url=None,
        title="Tandem edge node",
        version=dataplane.version,
        description=_DESCRIPTION,
        redirect_slashes=False,
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
        keyring=keyring,
    )


def _add_error_handlers(app: FastAPI, refusals: Refusals) -> None:
    """Every refusal is `{"error": "..."}`, as the Open Inference Protocol has it."""

    async def refuse(request: Request, error: Exception) -> Response:
        refusal = refusals.refuse(request.method, request.url.path, error)
        return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)

    for kind in (TandemError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, refuse)


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
    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the node, which has more to stop than this server."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, which gives TLS a minute: until its handshake has ended, a connection is
        neither counted nor timed by anyone else."""
        config, loop = self.config, asyncio.get_running_loop()
        await self.lifespan.startup()
        limit_s = None if config.ssl is None else self._handshake_s
        protocol: Any = config.http_protocol_class
        connect = partial(
            protocol, config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self.servers = [
            await loop.create_server(
                connect, sock=sock, ssl=config.ssl, ssl_handshake_timeout=limit_s, backlog=config.backlog
            )
            for sock in sockets or ()
        ]
        self.started = True


class HttpServer:
    """The listening HTTP server; `port` is known as soon as it exists."""

    def __init__(
        self,
        app: Front,
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
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        config.load()
        config.ssl = tls
        self._server = _Uvicorn(config, self._connections.bounds.head_s)
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
