"""The gRPC server: what it listens with, its health, and how it ends."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_service.servicer import SERVICE, Servicer
from cloud_service.settings import Settings
from inference_core.unserved import refuse_calls
from protos import open_inference_pb2_grpc as oip_grpc

_MESSAGE_OVERHEAD = 64 << 10  # names, shapes and parameters around the tensors


class GrpcServer:
    """The listening gRPC server with its health service; `port` is set by `start`."""

    def __init__(self, servicer: Servicer, settings: Settings) -> None:
        self._servicer = servicer
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
        # As bytes: the size of a message is that of its bytes, and parsing is ours to time.
        raw: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(servicer.ModelInfer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer),
        }
        self._server.add_registered_method_handlers(SERVICE, raw)
        refuse_calls(self._server, SERVICE)
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
        self._servicer.end_streams()
        await self._server.stop(grace_s)
