"""The Open Inference Protocol over gRPC, as the edge's devices and tools call it.

The only file of the node that is called over gRPC; what is behind it is `Dataplane`'s.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from edge_node.call_guard import CallGuard, key_of
from edge_node.dataplane import Dataplane
from edge_node.keys import Keyring
from edge_node.metrics import Metrics
from edge_node.settings import Settings
from inference_core.body import Intake
from inference_core.calls import Guard, Methods, options
from inference_core.classification import class_count
from inference_core.errors import InvalidInput, TandemError, grpc_status, shortened
from inference_core.grpc_server import create_server
from inference_core.listening import add_grpc_port
from inference_core.tensors import from_request, get_outputs, get_parameters, set_parameters, to_response
from inference_core.tls import ServerTls
from inference_core.unserved import refuse_calls
from inference_core.wire import parse
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc

SERVICE = "inference.GRPCInferenceService"
_log = logging.getLogger(__name__)
_HEALTH_BYTES = 64 << 10  # of all questions after the health that are being answered
_MAX_ON_STREAM = 64  # requests of one stream being answered; the next are not read until then
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)
_Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Translates each call of the protocol for the dataplane."""

    def __init__(
        self, dataplane: Dataplane, metrics: Metrics, intake: Intake, keyring: Keyring | None = None
    ) -> None:
        """With a keyring, inference is for those who show a key of it."""
        self._dataplane = dataplane
        self.intake = intake
        self.keyring = keyring
        self._metrics = metrics
        self._started = cache(metrics.grpc_started.labels)
        self._handled = cache(metrics.grpc_handled.labels)
        self._seconds = cache(metrics.grpc_seconds.labels)
        self._catalogue = dataplane.catalogue
        self._readers: set[asyncio.Task[InvalidInput | None]] = set()

    async def ServerLive(self, request: oip.ServerLiveRequest, context: _Context) -> oip.ServerLiveResponse:
        return await self._handle("ServerLive", context, _now(oip.ServerLiveResponse(live=True)))

    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: _Context
    ) -> oip.ServerReadyResponse:
        answer = oip.ServerReadyResponse(ready=self._catalogue.ready)
        return await self._handle("ServerReady", context, _now(answer))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: _Context) -> oip.ModelReadyResponse:
        answer = oip.ModelReadyResponse(ready=self._catalogue.model_ready(request.name, request.version))
        return await self._handle("ModelReady", context, _now(answer))

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: _Context
    ) -> oip.ServerMetadataResponse:
        work = _told(oip.ServerMetadataResponse(), self._catalogue.server)
        return await self._handle("ServerMetadata", context, work)

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: _Context
    ) -> oip.ModelMetadataResponse:
        work = _told(oip.ModelMetadataResponse(), self._catalogue.metadata, request.name, request.version)
        return await self._handle("ModelMetadata", context, work)

    async def ModelConfig(
        self, request: oip.ModelConfigRequest, context: _Context
    ) -> oip.ModelConfigResponse:
        answer = oip.ModelConfigResponse()
        work = _told(answer, lambda: {"config": self._catalogue.config(request.name, request.version)})
        return await self._handle("ModelConfig", context, work)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: _Context
    ) -> oip.ModelStatisticsResponse:
        work = _told(oip.ModelStatisticsResponse(), self._catalogue.statistics, request.name, request.version)
        return await self._handle("ModelStatistics", context, work)

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: _Context
    ) -> oip.RepositoryIndexResponse:
        work = _told(oip.RepositoryIndexResponse(), lambda: {"models": self._catalogue.index(request.ready)})
        return await self._handle("RepositoryIndex", context, work)

    async def ModelInfer(self, request: oip.ModelInferRequest, context: _Context) -> oip.ModelInferResponse:
        return await self._handle("ModelInfer", context, self._infer(request, context))

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        await self._handle("ModelStreamInfer", context, self._stream(requests, context), "bidi_stream")

    async def _stream(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        """Answer every request of a stream as soon as it can be: the answers' ids say whose they are."""
        room, writing = asyncio.Semaphore(_MAX_ON_STREAM), asyncio.Lock()

        async def answer(request: oip.ModelInferRequest, size: int) -> None:
            try:
                response = await self._stream_answer(request, size, context)
                async with writing:  # gRPC takes one message at a time
                    await context.write(response)
            finally:
                room.release()

        async def read() -> InvalidInput | None:
            async for data in requests:
                try:
                    request = parse(oip.ModelInferRequest, data)
                except InvalidInput as error:  # ends the stream, once what came before is answered
                    return error
                await room.acquire()
                group.create_task(answer(request, len(data)))
            return None

        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read())
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        if not reader.cancelled() and (broken := reader.result()) is not None:
            raise broken

    def interceptors(self, calls: int) -> list[CallGuard]:
        """What stands before every call, of which so many are answered at a time."""
        if self.keyring is None:
            return []
        return [CallGuard(self.keyring, self.turned_away, max(1, calls // 2))]

    def end_streams(self) -> None:
        """Read no more requests from any stream; those that were read are answered still."""
        for reader in self._readers:
            reader.cancel()

    async def _stream_answer(
        self, request: oip.ModelInferRequest, size: int, context: _Context
    ) -> oip.ModelStreamInferResponse:
        try:
            with self.intake.holding(size):
                return oip.ModelStreamInferResponse(infer_response=await self._infer(request, context))
        except Exception as error:  # noqa: BLE001 - what fails one request must not end the stream
            code, message = _refusal("ModelStreamInfer", error)
            self._metrics.refused.labels("grpc", code.name).inc()
            about = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
            set_parameters(about.parameters, {"tandem_status": code.name})
            return oip.ModelStreamInferResponse(error_message=message, infer_response=about)

    def turned_away(self, status: str) -> None:
        """Count a call that ended with `status` before it came to a method."""
        self._metrics.refused.labels("grpc", status).inc()

    async def _infer(self, request: oip.ModelInferRequest, context: _Context) -> oip.ModelInferResponse:
        if self.keyring is not None:
            key = key_of(self.keyring, context.invocation_metadata() or ())
            self.keyring.admit(key, request.model_name)
        inferred = await self._dataplane.infer(
            request.model_name,
            request.model_version,
            request.id,
            from_request(request),
            get_parameters(request.parameters),
            {name: class_count(name, own) for name, own in get_outputs(request).items()},
            time.monotonic(),
        )
        return to_response(
            inferred.model, inferred.version, inferred.outputs, inferred.parameters, inferred.id
        )

    async def _handle(self, method: str, context: _Context, work: Awaitable[_T], kind: str = "unary") -> _T:
        """Await `work`: the one place where an error becomes a status and a call is counted."""
        self._started(kind, SERVICE, method).inc()
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            return await work
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - a bug must cost one call, not the service
            code, message = _refusal(method, error)
            await context.abort(code, message)
        finally:
            self._handled(kind, SERVICE, method, code.name).inc()
            self._seconds(kind, SERVICE, method).observe(time.monotonic() - started)
            if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
                self._metrics.refused.labels("grpc", code.name).inc()


class GrpcServer:
    """The listening gRPC server with its health service; `port` is set by `start`."""

    def __init__(self, servicer: Servicer, settings: Settings, tls: ServerTls | None = None) -> None:
        self._servicer = servicer
        self._settings = settings
        self._health = health.aio.HealthServicer()
        self._tls = tls
        self._server = self._build()
        self.port = 0

    async def start(self) -> None:
        """Listen; not yet serving by the health protocol. Raises `RuntimeError` for a taken port."""
        settings = self._settings
        credentials = None if self._tls is None else self._tls.grpc_credentials()
        self.port = add_grpc_port(self._server, settings.host, settings.grpc_port, credentials)
        await self.set_serving(False)
        await self._server.start()

    def _build(self) -> grpc.aio.Server:
        settings, servicer = self._settings, self._servicer
        bounds = [
            *options(
                message_bytes=settings.max_body_bytes,
                metadata_bytes=settings.max_header_bytes,
                connections=settings.max_connections,
                calls=settings.max_calls,
                handshake_s=settings.head_timeout_ms / 1000,
            ),
            ("grpc.max_connection_idle_ms", settings.idle_timeout_ms),
        ]
        server = create_server(servicer.interceptors(settings.max_calls), bounds, settings.max_calls)
        methods, health_methods = Methods(), Methods()
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, methods)  # type: ignore[no-untyped-call]
        # As bytes: what is no message must not end in gRPC's hands.
        serialize = oip.ModelStreamInferResponse.SerializeToString
        stream: Any = grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer, None, serialize)
        guard = Guard(servicer.intake, settings.body_timeout_ms / 1000, servicer.turned_away)
        guard.serve(server, SERVICE, methods.handlers | {"ModelStreamInfer": stream})
        refuse_calls(server, SERVICE)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, health_methods)  # type: ignore[arg-type]
        # Strangers may watch the health for ever, by any name: these have an intake of their own.
        intake = Intake(_HEALTH_BYTES, _HEALTH_BYTES)
        guard = Guard(intake, settings.body_timeout_ms / 1000, servicer.turned_away)
        guard.serve(server, health.SERVICE_NAME, health_methods.handlers)
        return server

    async def set_serving(self, serving: bool) -> None:
        """Say by the health protocol whether calls are welcome."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if serving else kinds.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight `grace_s` seconds."""
        self._servicer.end_streams()  # one that is idle would use up all of it
        await self._server.stop(grace_s)


def _refusal(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the words that a caller gets for an error, which is logged where it is ours."""
    if not isinstance(error, TandemError):
        _log.error("%s failed unexpectedly", method, exc_info=error)
        return grpc.StatusCode.INTERNAL, "internal error; the service's log has the details"
    code = grpc.StatusCode[grpc_status(error)]
    if code is grpc.StatusCode.INTERNAL:
        _log.error("%s failed: %s", method, error)
        return code, "the model failed; the service's log has the details"
    return code, shortened(str(error))


async def _now(value: _T) -> _T:
    return value


async def _told(answer: _M, document: Callable[..., dict[str, Any]], *arguments: str) -> _M:
    """`answer` filled with what the document says: its fields have the same names."""
    return ParseDict(document(*arguments), answer)
