"""What the libraries under Tandem cost by themselves: uvicorn and grpc.aio around a run, and no more.

`python -m benchmarks.floor FILE HTTP_PORT GRPC_PORT`. Nothing is parsed that need not be, nothing is checked,
decided or counted: the tensor is the end of the request, and its logits are the end of the answer.
"""

import asyncio
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from benchmarks.networks import OUTPUT
from inference_core.engine import Engine
from protos import open_inference_pb2 as oip

SERVICE = "inference.GRPCInferenceService"
Run = Callable[[bytes], bytes]


def runner(file: Path) -> Run:
    """Runs the model in `file`, of one FP32 input and one output, on the tensor at the end of some bytes."""
    engine = Engine(file.read_bytes(), name=file.name)
    (spec,) = engine.inputs
    shape = (1, *spec.shape[1:])
    size = math.prod(shape) * np.dtype(np.float32).itemsize

    def run(content: bytes) -> bytes:
        tensor = np.frombuffer(memoryview(content)[-size:], np.float32).reshape(shape)
        (logits,) = engine.compute({spec.name: tensor}).values()
        return logits.tobytes()

    return run


async def serve(run: Run, http_port: int, grpc_port: int) -> None:
    """Both servers, until the process ends."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        answer = run(b"".join(parts) if len(parts) > 1 else parts[0])
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def infer(request: oip.ModelInferRequest, _: Any) -> oip.ModelInferResponse:
        answer = run(request.raw_input_contents[0])
        response = oip.ModelInferResponse(raw_output_contents=[answer])
        response.outputs.add(name=OUTPUT, datatype="FP32", shape=(1, len(answer) // 4))
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelInferResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    config = uvicorn.Config(
        app, port=http_port, lifespan="off", log_config=None, access_log=False, proxy_headers=False, ws="none"
    )
    await uvicorn.Server(config).serve()
    await server.stop(None)


def main(words: list[str]) -> None:
    """Serve as the command line says."""
    file, http_port, grpc_port = words
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(serve(runner(Path(file)), int(http_port), int(grpc_port)))


if __name__ == "__main__":
    main(sys.argv[1:])
