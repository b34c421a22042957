"""The cloud's HTTP side: health for orchestrators, what is served, for people, and the REST protocol."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from cloud_service.models import Models
from cloud_service.open_inference import ERROR_HANDLERS
from cloud_service.settings import Settings
from inference_core.http_bounds import Bounds


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
