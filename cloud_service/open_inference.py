"""The Open Inference Protocol over REST, for clients that have no gRPC; edges use `servicer`."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cloud_service.deadline import time_left
from cloud_service.decoders import Decoders
from cloud_service.guard import CALLER
from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served
from inference_core.body import Intake, read_question, single
from inference_core.catalogue import Catalogue, only_ready
from inference_core.classification import check_outputs, select
from inference_core.content_encoding import deflate, inflated
from inference_core.errors import Overloaded, TandemError, grpc_status, http_status, shortened
from inference_core.http_connection import vouch
from inference_core.priority import asked_priority
from inference_core.rest import HEADER_LENGTH, InferRequest, parse, render
from inference_core.tensors import Parameter
from inference_core.unserved import PATHS

_FOREVER_S = 3600.0
_CLIENT_CLOSED = 499  # nginx's number for a client that hung up; nobody is left to read it
_log = logging.getLogger(__name__)


class OpenInference:
    """The protocol's routes, answered from `Models` and its `Catalogue`."""

    def __init__(
        self, models: Models, catalogue: Catalogue, metrics: Metrics, decoders: Decoders, intake: Intake
    ) -> None:
        """`intake` bounds the bodies of requests, as they are sent and without their compression."""
        self._models = models
        self._catalogue = catalogue
        self._metrics = metrics
        self._decoders = decoders
        self._intake = intake

    def routes(self) -> list[BaseRoute]:
        """Everything below `/v2`."""
        # `stats` before the models: the protocol leaves a model of that name no other way.
        return [
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/models/stats", self._statistics),
            *_for_models("/infer", self._infer, "POST"),
            *_for_models("/ready", self._model_ready),
            *_for_models("/config", self._config),
            *_for_models("/stats", self._statistics),
            *_for_models("", self._metadata),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            *(Route(f"/v2{path}", _refusal(words), methods=["GET", "POST"]) for path, words in PATHS),
        ]

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = self._catalogue.ready
        return _json({"live": True, "ready": ready}, 200 if ready else 503)

    async def _server(self, _: Request) -> Response:
        return _json(self._catalogue.server())

    async def _model_ready(self, request: Request) -> Response:
        document, ready = self._catalogue.health(*_named(request))
        return _json(document, 200 if ready else 503)

    async def _metadata(self, request: Request) -> Response:
        return _json(self._catalogue.metadata(*_named(request)))

    async def _config(self, request: Request) -> Response:
        return _json(self._catalogue.config(*_named(request)))

    async def _statistics(self, request: Request) -> Response:
        return _json(self._catalogue.statistics(*_named(request)))

    async def _index(self, request: Request) -> Response:
        return _json(self._catalogue.index(only_ready(await read_question(request.stream()))))

    async def _infer(self, request: Request) -> Response:
        arrived = time.monotonic()
        with _Count(self._metrics, arrived) as count:
            served = count.served = self._models.get(*_named(request))
            headers = single(request.scope["headers"])
            async with self._intake.read(headers, request.receive) as raw:
                self._metrics.series(served.name).received.inc(len(raw))
                body = await inflated(
                    raw, request.headers.get("content-encoding", ""), self._intake.max_body_bytes
                )
                with self._intake.holding(len(body) if body is not raw else 0):
                    asked = parse(body, request.headers.get(HEADER_LENGTH))
                    accepted = request.headers.get("accept-encoding", "")
                    host = request.client.host if request.client else ""
                    caller = request.scope.get("state", {}).get(CALLER, host)
                    response = await self._run(served, asked, arrived, accepted, caller)
            vouch(request.scope)
            return response

    async def _run(
        self, served: Served, asked: InferRequest, arrived: float, accept: str, caller: str
    ) -> Response:
        """The answer of one model to one request, which is counted when it is there."""
        check_outputs(asked.wanted, [spec.name for spec in served.engine.outputs])
        deadline = arrived + time_left(asked.parameters, _FOREVER_S)
        inputs, seconds, priority = asked.inputs, {}, asked_priority(asked.parameters)
        if served.decoder is not None:
            served.batcher.admit(inputs, deadline, priority=priority, caller=caller)
            started = time.monotonic()
            inputs = await self._decoders.decode(
                served.decoder, inputs, deadline, priority=priority, caller=caller
            )
            seconds["decode"] = time.monotonic() - started
        handed = time.monotonic()
        batched = await served.batcher.submit(inputs, deadline, priority=priority, caller=caller)
        back = time.monotonic()
        seconds |= {"queue": batched.queue_s, "infer": batched.infer_s}
        series = self._metrics.series(served.name)
        parameters: dict[str, Parameter] = {"tandem_bundle": served.digest}
        for stage, value in seconds.items():
            series.stage(stage).observe(value)
            parameters[f"tandem_{stage}_ms"] = value * 1000
        outputs = select(batched.outputs, asked.wanted, served.labels)
        parameters["tandem_total_ms"] = (time.monotonic() - arrived) * 1000
        content, header_length = render(served.name, served.version, asked, asked.id, outputs, parameters)
        response = _response(content, header_length, accept)
        series.sent.inc(len(response.body))
        ended, rows = time.monotonic(), len(next(iter(batched.outputs.values())))
        served.answered(
            rows, ended - arrived, batched.queue_s, handed - arrived, batched.infer_s, ended - back
        )
        return response


class _Count:
    """Counts one request when its block ends, by what became of it, under the model that it found."""

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self.served: Served | None = None

    def __enter__(self) -> Self:
        self._metrics.inflight.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.inflight.dec()
        outcome = "ok" if error is None else "failed"
        if isinstance(error, TandemError):
            outcome = grpc_status(error).lower()
        elif isinstance(error, ClientDisconnect | asyncio.CancelledError):
            outcome = "cancelled"
        name = "unknown" if self.served is None else self.served.name
        series, seconds = self._metrics.series(name), time.monotonic() - self._arrived
        series.outcome(outcome).inc()
        series.seconds.observe(seconds)
        if error is not None and self.served is not None:
            self.served.statistics.fail(seconds)


async def _tandem_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, TandemError):
        raise error
    status = http_status(error)
    if status == 500:
        _log.error("%s %s failed: %s", request.method, request.url.path, error)
        return _json({"error": "the model failed; the service's log has the details"}, status)
    headers = (
        {"Retry-After": str(max(1, round(error.retry_after_s)))} if isinstance(error, Overloaded) else None
    )
    return _json({"error": shortened(str(error))}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    words = shortened(f"{request.method} {request.url.path}: {error.detail}")
    return _json({"error": words}, error.status_code, dict(error.headers) if error.headers else None)


async def _hung_up(_: Request, __: Exception) -> Response:
    return _json({"error": "the client hung up"}, _CLIENT_CLOSED)


async def _bug(_: Request, __: Exception) -> Response:
    return _json({"error": "internal error; the service's log has the details"}, 500)


# Every refusal is `{"error": "..."}`, as the protocol has it, on the other paths of the port as well.
ERROR_HANDLERS: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    TandemError: _tandem_error,
    HTTPException: _http_error,
    ClientDisconnect: _hung_up,
    Exception: _bug,
}


def _for_models(
    path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET"
) -> list[BaseRoute]:
    """The route of `path` behind a model's name, and behind its version."""
    return [
        Route(f"/v2/models/{{model}}{version}{path}", handler, methods=[method])
        for version in ("", "/versions/{version}")
    ]


def _refusal(words: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(_: Request) -> Response:
        raise HTTPException(404, words)

    return refuse


def _named(request: Request) -> tuple[str, str]:
    """The model's name and version in the path, empty where it has none."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _response(content: bytes, header_length: int | None, accept: str) -> Response:
    content, encoding = deflate(content, accept)
    headers = {"Content-Encoding": encoding} if encoding else {}
    if header_length is None:
        return Response(content, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(header_length)
    return Response(content, media_type="application/octet-stream", headers=headers)


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
