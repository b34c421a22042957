"""The Open Inference Protocol over REST, with the binary tensor extension and gzip.

The protocol's own field names and status codes; what is behind them is `Dataplane`'s. Bodies are read raw:
its clients send no Content-Type.
"""

import zlib
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_node.body import Intake
from edge_node.dataplane import EXTENSIONS, PLATFORM, SERVER, Dataplane, Inferred
from inference_core.engine import TensorSpec
from inference_core.errors import InvalidInput, TooLarge
from inference_core.tensors import Parameter, Tensors, datatype_of, from_bytes, from_json, to_bytes, to_json

HEADER_LENGTH = "inference-header-content-length"
_MAX_DIGITS = 18  # Python refuses to read numbers of thousands of digits
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": 32 + zlib.MAX_WBITS}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Input(_Part):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    data: Any = None


class _Output(_Part):
    name: str
    parameters: dict[str, Parameter] = Field(default_factory=dict)


class _Infer(_Part):
    id: str = ""
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    inputs: tuple[_Input, ...]
    outputs: tuple[_Output, ...] = ()

    def wants_binary(self, output: str) -> bool:
        """Whether `output` is to come as bytes: its own word goes before the request's."""
        default = self.parameters.get("binary_data_output", False)
        own = {o.name: o.parameters.get("binary_data", default) for o in self.outputs}
        return bool(own.get(output, default))


def create_open_inference(dataplane: Dataplane, intake: Intake) -> APIRouter:
    """The routes under `/v2`."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("", summary="Server metadata")
    async def server() -> Response:
        return _json({"name": SERVER, "version": dataplane.version, "extensions": EXTENSIONS})

    @router.get("/health/live", summary="Is the server alive")
    async def live() -> Response:
        return _json({"live": True})

    @router.get("/health/ready", summary="Are all models ready")
    async def ready() -> Response:
        return _json({"live": True, "ready": dataplane.ready}, 200 if dataplane.ready else 503)

    @router.get("/models/{model}/ready", summary="Is the model ready")
    @router.get("/models/{model}/versions/{version}/ready", summary="Is the model version ready")
    async def model_ready(model: str, version: str = "") -> Response:
        is_ready = dataplane.model_ready(model, version)
        return _json({"name": model, "ready": is_ready, "live": is_ready}, 200 if is_ready else 503)

    @router.get("/models/{model}", summary="Model metadata")
    @router.get("/models/{model}/versions/{version}", summary="Model version metadata")
    async def metadata(model: str, version: str = "") -> Response:
        found = dataplane.metadata(model, version)
        return _json(
            {
                "name": found.name,
                "versions": [found.version],
                "platform": PLATFORM,
                "inputs": [_spec(spec) for spec in found.inputs],
                "outputs": [_spec(spec) for spec in found.outputs],
            }
        )

    @router.post("/models/{model}/infer", summary="Infer", openapi_extra=_BODY)
    @router.post("/models/{model}/versions/{version}/infer", summary="Infer", openapi_extra=_BODY)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        async with intake.read(request) as raw:
            body = _inflate(raw, request.headers.get("content-encoding", ""), intake.max_body_bytes)
            with intake.holding(len(body) if body is not raw else 0):
                message, inputs = _parse(body, request.headers.get(HEADER_LENGTH))
                wanted = tuple(output.name for output in message.outputs)
                inferred = await dataplane.infer(
                    model, version, message.id, inputs, message.parameters, wanted
                )
        return _respond(inferred, message)

    return router


def _inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its content encoding; `TooLarge` as soon as it grows over `limit` bytes."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise InvalidInput(f"Content-Encoding: {encoding!r} is not one of {', '.join(_WINDOWS)}, identity")
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"body: is not {encoding}") from error
    if len(content) > limit:
        raise TooLarge(f"body: over the limit of {limit} bytes when decompressed")
    if not inflater.eof:
        raise InvalidInput(f"body: its {encoding} ends too early")
    return content


def _parse(body: bytes, header_length: str | None) -> tuple[_Infer, Tensors]:
    """The request's JSON part, and its tensors from there or from the bytes behind it."""
    end = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_DIGITS
        if not digits or int(header_length) > len(body):
            raise InvalidInput(
                f"Inference-Header-Content-Length: must be 0 to {len(body)}, the body's length"
            )
        end = int(header_length)
    try:
        message = _Infer.model_validate(orjson.loads(memoryview(body)[:end]))
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"body: not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from error
    return message, _tensors(message, memoryview(body)[end:])


def _tensors(message: _Infer, binary: memoryview) -> Tensors:
    tensors: Tensors = {}
    at = 0
    for item in message.inputs:
        if item.name in tensors:
            raise InvalidInput(f"input {item.name!r} is given twice")
        size = item.parameters.get("binary_data_size")
        if size is None:
            tensors[item.name] = from_json(item.name, item.datatype, item.shape, item.data)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - at:
            raise InvalidInput(
                f"input {item.name!r}: binary_data_size must be 0 to {len(binary) - at}, got {size!r}"
            )
        tensors[item.name] = from_bytes(item.name, item.datatype, item.shape, binary[at : at + size])
        at += size
    if at != len(binary):
        raise InvalidInput(f"body: {len(binary) - at} bytes after the last binary input")
    return tensors


def _respond(inferred: Inferred, message: _Infer) -> Response:
    outputs, chunks = [], []
    for name, array in inferred.outputs.items():
        output: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype_of(array)}
        if message.wants_binary(name):
            chunks.append(to_bytes(array))
            output["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            output["data"] = to_json(array)
        outputs.append(output)
    header = orjson.dumps(
        {
            "model_name": inferred.model,
            "model_version": inferred.version,
            "id": inferred.id,
            "parameters": inferred.parameters,
            "outputs": outputs,
        }
    )
    if not chunks:
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *chunks]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
        "description": "An Open Inference Protocol request, its tensors as JSON or as bytes behind it.",
    }
}
