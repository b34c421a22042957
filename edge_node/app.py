"""The edge node's HTTP application: its routes, its health, and how errors look."""

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
from inference_core.errors import TandemError
from inference_core.http_bounds import Bounds

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
