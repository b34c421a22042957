"""A cloud that speaks the protocol and gives whatever answers a test wants."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc

from protos import open_inference_pb2 as oip

Reply = Callable[[oip.ModelInferRequest], bytes]


class FakeCloud:
    """Listens on `port`; `reply` makes the bytes of each answer to `ModelInfer`, and
    `time_left_s` are the seconds until the deadline of each call so far."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.time_left_s: list[float] = []
        self._workers = ThreadPoolExecutor(2)
        self._server = grpc.server(self._workers)
        handler: grpc.RpcMethodHandler[oip.ModelInferRequest, bytes] = grpc.unary_unary_rpc_method_handler(
            self._infer, request_deserializer=oip.ModelInferRequest.FromString
        )
        service = grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService", {"ModelInfer": handler}
        )
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def _infer(self, request: oip.ModelInferRequest, context: grpc.ServicerContext) -> bytes:
        self.time_left_s.append(context.time_remaining())
        return self.reply(request)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
        self._workers.shutdown()
