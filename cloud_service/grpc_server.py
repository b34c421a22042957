"""The gRPC server: what it listens with, its health, and how it ends."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_service.fleet import SERVICE as FLEET
from cloud_service.fleet import Fleet
from cloud_service.servicer import SERVICE, Servicer
from cloud_service.settings import Settings
from inference_core.calls import Guard, Methods, options
from inference_core.grpc_server import create_server
from inference_core.listening import add_grpc_port
from inference_core.tls import ServerTls
from inference_core.unserved import refuse_calls
from protos import fleet_pb2_grpc as fleet_grpc
from protos import open_inference_pb2_grpc as oip_grpc

_MESSAGE_OVERHEAD = 64 << 10  # names, shapes and parameters around the tensors


class GrpcServer:
    """The listening gRPC server with its health service; `port` is set by `start`."""

    def __init__(
        self,
        servicer: Servicer,
        settings: Settings,
        *,
        tls: ServerTls | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        fleet: Fleet | None = None,
    ) -> None:
        self._servicer = servicer
        self._settings = settings
        self._interceptors = interceptors
        self._fleet = fleet
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
                message_bytes=settings.max_message_bytes + _MESSAGE_OVERHEAD,
                metadata_bytes=settings.max_header_bytes,
                connections=settings.max_connections,
                calls=settings.max_calls,
                handshake_s=settings.head_timeout_ms / 1000,
            ),
            # Edges look the name up again when a connection ends: so they find new replicas.
            ("grpc.max_connection_age_ms", 30_000),
            ("grpc.max_connection_age_grace_ms", 10_000),
        ]
        server = create_server(self._interceptors, bounds, settings.max_calls)
        methods, health_methods = Methods(), Methods()
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, methods)  # type: ignore[no-untyped-call]
        # As bytes: the size of a message is that of its bytes, and parsing is ours to time.
        raw: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(servicer.ModelInfer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer),
        }
        guard = Guard(servicer.intake, settings.body_timeout_ms / 1000, servicer.turned_away)
        guard.serve(server, SERVICE, methods.handlers | raw)
        if self._fleet is not None:
            fleet_methods = Methods()
            fleet_grpc.add_FleetServicer_to_server(self._fleet, fleet_methods)  # type: ignore[no-untyped-call]
            guard.serve(server, FLEET, fleet_methods.handlers)
        refuse_calls(server, SERVICE)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, health_methods)  # type: ignore[arg-type]
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
        self._servicer.end_streams()
        await self._server.stop(grace_s)
