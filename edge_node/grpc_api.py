"""The Open Inference Protocol over gRPC, as the edge's devices and tools call it.

The only file of the node that is called over gRPC; what is behind it is `Dataplane`'s.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from edge_node.dataplane import EXTENSIONS, PLATFORM, SERVER, Dataplane
from edge_node.metrics import Metrics
from edge_node.settings import Settings
from inference_core.engine import TensorSpec
from inference_core.errors import TandemError, grpc_status
from inference_core.tensors import from_request, get_parameters, to_response
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc

SERVICE = "inference.GRPCInferenceService"
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Translates each call of the protocol for the dataplane."""

    def __init__(self, dataplane: Dataplane, metrics: Metrics) -> None:
        self._dataplane = dataplane
        self._metrics = metrics

    async def ServerLive(self, request: oip.ServerLiveRequest, context: _Context) -> oip.ServerLiveResponse:
        return await self._handle("ServerLive", context, _now(oip.ServerLiveResponse(live=True)))

    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: _Context
    ) -> oip.ServerReadyResponse:
        answer = oip.ServerReadyResponse(ready=self._dataplane.ready)
        return await self._handle("ServerReady", context, _now(answer))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: _Context) -> oip.ModelReadyResponse:
        answer = oip.ModelReadyResponse(ready=self._dataplane.model_ready(request.name, request.version))
        return await self._handle("ModelReady", context, _now(answer))

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: _Context
    ) -> oip.ServerMetadataResponse:
        answer = oip.ServerMetadataResponse(
            name=SERVER, version=self._dataplane.version, extensions=EXTENSIONS
        )
        return await self._handle("ServerMetadata", context, _now(answer))

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: _Context
    ) -> oip.ModelMetadataResponse:
        return await self._handle("ModelMetadata", context, self._metadata(request))

    async def ModelInfer(self, request: oip.ModelInferRequest, context: _Context) -> oip.ModelInferResponse:
        return await self._handle("ModelInfer", context, self._infer(request))

    async def _metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        found = self._dataplane.metadata(request.name, request.version)
        return oip.ModelMetadataResponse(
            name=found.name,
            versions=[found.version],
            platform=PLATFORM,
            inputs=[_spec(spec) for spec in found.inputs],
            outputs=[_spec(spec) for spec in found.outputs],
        )

    async def _infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        inferred = await self._dataplane.infer(
            request.model_name,
            request.model_version,
            request.id,
            from_request(request),
            get_parameters(request.parameters),
            tuple(output.name for output in request.outputs),
        )
        return to_response(
            inferred.model, inferred.version, inferred.outputs, inferred.parameters, inferred.id
        )

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
            message = str(error)
            if code is grpc.StatusCode.INTERNAL:
                _log.exception("%s failed", method)
                message = "the model failed; the service's log has the details"
            await context.abort(code, message)
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
            if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
                self._metrics.refused.labels("grpc", code.name).inc()


class GrpcServer:
    """The listening gRPC server with its health service; `port` is set by `start`."""

    def __init__(self, servicer: Servicer, settings: Settings) -> None:
        limit = settings.max_body_bytes
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
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


async def _now(value: _T) -> _T:
    return value


def _spec(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
