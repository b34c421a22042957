"""A cloud whose one method does as it is told, behind a real gRPC server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from edge_node.carrier import MODEL_INFER
from edge_node.cloud import Query
from inference_core.bundle import TensorInfo
from inference_core.tensors import to_response
from protos import open_inference_pb2 as oip
from tests.bundles import UNSURE, pixels

PATIENCE_S = 30.0
LOGITS = np.array([[1.0, 2.0, 3.0]], np.float32)
Code = grpc.StatusCode
Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[oip.ModelInferRequest, Context], Awaitable[bytes]]


def query(**changes: Any) -> Query:
    given: dict[str, Any] = {
        "id": "id-7",
        "model": "colors",
        "version": "1",
        "inputs": {"input": pixels(UNSURE)},
        "parameters": {"tandem_bundle": "abc"},
        "expect": TensorInfo(name="logits", datatype="FP32", shape=(3,)),
    }
    return Query(**given | changes)


def message(
    outputs: dict[str, NDArray[Any]] | None = None, version: str = "1", **parameters: Any
) -> oip.ModelInferResponse:
    return to_response("colors", version, outputs or {"logits": LOGITS}, parameters, "id-7")


def answering(response: oip.ModelInferResponse | bytes) -> Behaviour:
    data = response if isinstance(response, bytes) else response.SerializeToString()

    async def behave(request: oip.ModelInferRequest, context: Context) -> bytes:
        return data

    return behave


def aborting(code: grpc.StatusCode) -> Behaviour:
    async def behave(request: oip.ModelInferRequest, context: Context) -> bytes:
        await context.abort(code, "as told")

    return behave


class ScriptedCloud:
    """A server whose one method does what `behave` says; it can be stopped and come back on its port."""

    def __init__(self) -> None:
        self.behave = answering(message(tandem_infer_ms=1.5))
        self.requests: list[oip.ModelInferRequest] = []
        self.peers: set[str] = set()  # the connections on which it was asked
        self.remaining: list[float] = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.port = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service, _, method = MODEL_INFER.strip("/").partition("/")
        handler: Any = grpc.unary_unary_rpc_method_handler(
            self._infer, request_deserializer=oip.ModelInferRequest.FromString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    async def _infer(self, request: oip.ModelInferRequest, context: Context) -> bytes:
        self.requests.append(request)
        self.peers.add(context.peer())
        self.remaining.append(context.time_remaining() or float("inf"))
        self.began.set()
        return await self.behave(request, context)

    async def held(self, request: oip.ModelInferRequest, context: Context) -> bytes:
        """A behaviour: answer when `release` is set."""
        await self.release.wait()
        return message().SerializeToString()
