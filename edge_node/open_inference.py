"""The Open Inference Protocol over REST, with the binary tensor extension and gzip.

The protocol's own field names and status codes; what is behind them is `Dataplane`'s. Bodies are read raw:
its clients send no Content-Type.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, HTTPException, Path, Request, Response

from edge_node.dataplane import Dataplane
from edge_node.front import Call, Handler, Reply
from edge_node.open_inference_schema import (
    CONFIG,
    INDEX,
    INDEX_REQUEST,
    LIVE,
    METADATA,
    MODEL_READY,
    READY,
    SERVER,
    STATISTICS,
    Responses,
)
from inference_core.body import Body, Intake, read_question
from inference_core.catalogue import only_ready
from inference_core.content_encoding import deflate, inflated
from inference_core.rest import HEADER_LENGTH, parse, render
from inference_core.unserved import PATHS

_HEADER_LENGTH = HEADER_LENGTH.encode()

Model = Annotated[str, Path(description="name of a served model", examples=["digits"])]
Version = Annotated[str, Path(description="its version")]


def create_open_inference(dataplane: Dataplane) -> APIRouter:
    """The routes under `/v2` that describe; what infers is `create_infer`'s."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    catalogue = dataplane.catalogue

    @router.get("", summary="Server metadata", responses=SERVER)
    async def server() -> Response:
        return _json(catalogue.server())

    @router.get("/health/live", summary="Is the server alive", responses=LIVE)
    async def live() -> Response:
        return _json({"live": True})

    @router.get("/health/ready", summary="Are all models ready", responses=READY)
    async def ready() -> Response:
        return _json({"live": True, "ready": catalogue.ready}, 200 if catalogue.ready else 503)

    @router.post(
        "/repository/index", summary="Every model's state", responses=INDEX, openapi_extra=INDEX_REQUEST
    )
    async def index(request: Request) -> Response:
        return _json(catalogue.index(only_ready(await read_question(request.stream()))))

    # Before the models: the protocol leaves a model called `stats` no other way.
    @router.get("/models/stats", summary="What all models have served", responses=STATISTICS)
    async def statistics() -> Response:
        return _json(catalogue.statistics())

    def model_ready(model: str, version: str) -> Response:
        document, is_ready = catalogue.health(model, version)
        return _json(document, 200 if is_ready else 503)

    for path, summary, responses, answer in (
        ("/ready", "Is the model ready", MODEL_READY, model_ready),
        ("/config", "The model's configuration", CONFIG, _told(catalogue.config)),
        ("/stats", "What the model has served", STATISTICS, _told(catalogue.statistics)),
        ("", "The model's inputs and outputs", METADATA, _told(catalogue.metadata)),
    ):
        _add_for_models(router, path, summary, responses, answer)
    for path, words in PATHS:
        router.add_api_route(path, _refusal(words), methods=["GET", "POST"], include_in_schema=False)
    return router


def _add_for_models(
    router: APIRouter, path: str, summary: str, responses: Responses, answer: Callable[[str, str], Response]
) -> None:
    """Add the route of `path` behind a model's name, and behind its version."""

    @router.get(f"/models/{{model}}{path}", summary=summary, responses=responses)
    async def of_model(model: Model) -> Response:
        return answer(model, "")

    @router.get(
        f"/models/{{model}}/versions/{{version}}{path}",
        summary=f"{summary}, of one version",
        responses=responses,
    )
    async def of_version(model: Model, version: Version) -> Response:
        return answer(model, version)


def _told(document: Callable[[str, str], dict[str, Any]]) -> Callable[[str, str], Response]:
    return lambda model, version: _json(document(model, version))


def _refusal(words: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise HTTPException(404, words)

    return refuse


def create_infer(dataplane: Dataplane, intake: Intake) -> Handler:
    """What answers requests for inference."""

    async def infer(call: Call) -> Reply:
        arrived = time.monotonic()
        async with intake.read(call.headers, call.receive) as raw:
            body = await inflated(raw, call.header(b"content-encoding"), intake.max_body_bytes)
            if body is raw:
                return await _answer(dataplane, call, body, arrived)
            with intake.holding(len(body)):
                return await _answer(dataplane, call, body, arrived)

    return infer


async def _answer(dataplane: Dataplane, call: Call, body: Body, arrived: float) -> Reply:
    request = parse(body, call.header(_HEADER_LENGTH) if _HEADER_LENGTH in call.headers else None)
    inferred = await dataplane.infer(
        call.model, call.version, request.id, request.inputs, request.parameters, request.wanted, arrived
    )
    content, header_length = render(
        inferred.model, inferred.version, request, inferred.id, inferred.outputs, inferred.parameters
    )
    headers, media_type = [], b"application/json"
    if header_length is not None:
        headers, media_type = [(_HEADER_LENGTH, b"%d" % header_length)], b"application/octet-stream"
    accepted = call.header(b"accept-encoding")
    if accepted:
        content, encoding = deflate(content, accepted)
        if encoding is not None:
            headers.append((b"content-encoding", encoding.encode()))
    return Reply(content, media_type, headers)


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
