"""The Open Inference Protocol over gRPC: wire to arrays, one model, arrays to wire.

The only file of the service that touches gRPC.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served
from cloud_service.settings import Settings
from inference_core.engine import TensorSpec
from inference_core.errors import ModelNotFound, NotReady, TandemError, VersionMismatch, grpc_status
from inference_core.tensors import Parameter, from_request, get_parameters, to_response
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("tandem",)
_FOREVER_S = 3600.0
_MESSAGE_OVERHEAD = 64 << 10  # names, shapes and parameters around the tensors
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Answers each call of the protocol from `Models`."""

    def __init__(self, models: Models, metrics: Metrics, decoders: Executor, version: str) -> None:
        self._models = models
        self._metrics = metrics
        self._decoders = decoders
        self._version = version

    async def ServerLive(self, request: oip.ServerLiveRequest, context: _Context) -> oip.ServerLiveResponse:
        return await self._handle("ServerLive", context, _ready(oip.ServerLiveResponse(live=True)))

    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: _Context
    ) -> oip.ServerReadyResponse:
        answer = oip.ServerReadyResponse(ready=self._models.ready)
        return await self._handle("ServerReady", context, _ready(answer))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: _Context) -> oip.ModelReadyResponse:
        return await self._handle("ModelReady", context, self._model_ready(request))

    async def ServerMetadata(
        self,
        request: oip.ServerMetadataRequest,
        context: _Context,
    ) -> oip.ServerMetadataResponse:
        answer = oip.ServerMetadataResponse(name="tandem-cloud", version=self._version, extensions=EXTENSIONS)
        return await self._handle("ServerMetadata", context, _ready(answer))

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: _Context
    ) -> oip.ModelMetadataResponse:
        return await self._handle("ModelMetadata", context, self._model_metadata(request))

    async def ModelInfer(self, request: oip.ModelInferRequest, context: _Context) -> oip.ModelInferResponse:
        with self._metrics.inflight.track_inprogress():
            return await self._handle("ModelInfer", context, self._infer(request, context))

    async def _model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        try:
            self._models.get(request.name, request.version)
        except (ModelNotFound, VersionMismatch, NotReady):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    async def _model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        served = self._models.get(request.name, request.version)
        return oip.ModelMetadataResponse(
            name=served.name,
            versions=[served.version],
            platform="onnxruntime_onnx",
            inputs=[_metadata(spec) for spec in served.inputs],
            outputs=[_metadata(spec) for spec in served.engine.outputs],
        )

    async def _infer(self, request: oip.ModelInferRequest, context: _Context) -> oip.ModelInferResponse:
        started = time.monotonic()
        outcome, name = "failed", "unknown"
        try:
            parameters = get_parameters(request.parameters)
            digest = str(parameters.get("tandem_bundle", ""))
            served = self._models.get(request.model_name, request.model_version, digest)
            name = served.name
            self._metrics.bytes.labels(name, "received").inc(request.ByteSize())
            response = await self._run(served, request, context)
            self._metrics.bytes.labels(name, "sent").inc(response.ByteSize())
            outcome = "ok"
        except TandemError as error:
            outcome = grpc_status(error).lower()
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.requests.labels(name, outcome).inc()
            self._metrics.seconds.labels(name).observe(time.monotonic() - started)
        return response

    async def _run(
        self, served: Served, request: oip.ModelInferRequest, context: _Context
    ) -> oip.ModelInferResponse:
        left = context.time_remaining()
        deadline = time.monotonic() + (left if left is not None else _FOREVER_S)
        inputs = from_request(request)
        seconds = {}
        if served.images is not None:
            started = time.monotonic()
            loop = asyncio.get_running_loop()
            inputs = await loop.run_in_executor(self._decoders, served.images.decode, inputs)
            seconds["decode"] = time.monotonic() - started
        batched = await served.batcher.submit(inputs, deadline)
        seconds |= {"queue": batched.queue_s, "infer": batched.infer_s}
        answer: dict[str, Parameter] = {"tandem_bundle": served.digest}
        for stage, value in seconds.items():
            self._metrics.stages.labels(served.name, stage).observe(value)
            answer[f"tandem_{stage}_ms"] = value * 1000
        return to_response(served.name, served.version, batched.outputs, answer, request.id)

    async def _handle(self, method: str, context: _Context, work: Awaitable[_T]) -> _T:
        """Await `work`: the one place where an error becomes a status and a call is counted."""
        labels = ("unary", SERVICE, method)
        self._metrics.grpc_started.labels(*labels).inc()
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            return await work
        except TandemError as error:
            code = grpc.StatusCode[grpc_status(error)]
            if code is grpc.StatusCode.INTERNAL:
                _log.exception("%s failed", method)
            await context.abort(code, str(error))
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:  # noqa: BLE001 - a bug must cost one call, not the service
            code = grpc.StatusCode.INTERNAL
            _log.exception("%s failed unexpectedly", method)
            await context.abort(code, "internal error; the service's log has the details")
        finally:
            self._metrics.grpc_handled.labels(*labels, code.name).inc()
            self._metrics.grpc_seconds.labels(*labels).observe(time.monotonic() - started)


class GrpcServer:
    """The listening gRPC server with its health service; `port` is set by `start`."""

    def __init__(self, servicer: Servicer, settings: Settings) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes + _MESSAGE_OVERHEAD),
                ("grpc.max_send_message_length", settings.max_message_bytes + _MESSAGE_OVERHEAD),
                # An edge pings an idle connection every 20 s; the default would scold it for that.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Edges look the name up again when a connection ends: so they find new replicas.
                ("grpc.max_connection_age_ms", 30_000),
                ("grpc.max_connection_age_grace_ms", 10_000),
                ("grpc.so_reuseport", 0),
            ]
        )
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._address = f"{settings.host}:{settings.grpc_port}"
        self.port = 0

    async def start(self) -> None:
        """Listen; not yet serving by the health protocol. Raises `RuntimeError` for a taken port."""
        self.port = self._server.add_insecure_port(self._address)
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Say by the health protocol whether calls are welcome."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if serving else kinds.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight `grace_s` seconds."""
        await self._server.stop(grace_s)


async def _ready(value: _T) -> _T:
    return value


def _metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
