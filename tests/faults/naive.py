"""The same interfaces as one would write them in an afternoon: what the malformed cases must bring down.

`python -m tests.faults.naive` serves HTTP and gRPC on free ports and prints them.
"""

import asyncio
import gzip
import io
import json
import logging
from typing import Any

import grpc
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc


async def predict(request: Request) -> JSONResponse:
    """The mean colour of the image in the body."""
    pixels = np.asarray(Image.open(io.BytesIO(await request.body())).convert("RGB").resize((8, 8)))
    return JSONResponse({"logits": pixels.mean(axis=(0, 1)).tolist()})


async def infer(request: Request) -> JSONResponse:
    """The first input of the message, summed up."""
    body = await request.body()
    if request.headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    tensor = json.loads(body)["inputs"][0]
    values = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    return JSONResponse({"outputs": [{"name": "logits", "data": values.sum(axis=0).ravel().tolist()}]})


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """The same over gRPC."""

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:  # noqa: N802
        tensor = request.inputs[0]
        values = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tensor.shape)
        response = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.raw_output_contents.append(values.sum(axis=0).tobytes())
        return response


async def main() -> None:
    """Serve until killed."""
    logging.disable(logging.CRITICAL)
    routes = [
        Route("/readyz", lambda _: JSONResponse({})),
        Route("/v1/models/{model}/predict", predict, methods=["POST"]),
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
    ]
    server = grpc.aio.server()
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None)
    http_server = uvicorn.Server(config)
    serving = asyncio.create_task(http_server.serve())
    while not http_server.started:  # noqa: ASYNC110 - uvicorn has nothing to wait for
        await asyncio.sleep(0.01)
    port = http_server.servers[0].sockets[0].getsockname()[1]
    print(f"http_port={port} grpc_port={grpc_port} metrics_port=0", flush=True)  # noqa: T201
    await serving


if __name__ == "__main__":
    asyncio.run(main())
