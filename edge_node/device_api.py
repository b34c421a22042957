"""The devices' interface: an image or a tensor in the body, the Outcome in the answer."""

import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from edge_node.body import Intake
from edge_node.joint import Ask, JointInference
from edge_node.model_slot import LoadedModel, ModelSlots
from edge_node.outcome import Outcome
from edge_node.settings import Preferences
from inference_core.errors import InvalidInput
from inference_core.preprocess import FORMATS
from inference_core.tensors import from_bytes

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
TENSOR_TYPE = "application/octet-stream"
# What curl says of `--data-binary` on its own: nothing about the body.
VAGUE_TYPES = frozenset({"", "application/x-www-form-urlencoded"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ACCEPTED = ", ".join([*sorted(IMAGE_TYPES), "multipart/form-data (field 'file')", TENSOR_TYPE])

Model = Annotated[str, Path(description="name of a served model", examples=["digits"])]


class Wants(Preferences):
    """The query parameters of a prediction."""

    top_k: int = Field(5, ge=1, le=1000, description="how many classes to list")


def create_device_api(slots: ModelSlots, joint: JointInference, intake: Intake) -> APIRouter:
    """The routes under `/v1`."""
    router = APIRouter(prefix="/v1", tags=["devices"])

    @router.get("/models", summary="The served models")
    async def list_models() -> Response:
        return _json({"models": [_describe(model) for model in slots.all()]})

    @router.get("/models/{model}", summary="One model: labels, input, cuts, settings")
    async def get_model(model: Model) -> Response:
        return _json(_describe(slots.get(model)))

    @router.post(
        "/models/{model}/predict",
        summary="Classify one image or tensor",
        response_model=Outcome,
        responses=dict.fromkeys((400, 404, 413, 503), _ERROR),
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(request: Request, model: Model, wants: Annotated[Wants, Query()]) -> Response:
        arrived = time.monotonic()
        loaded = slots.get(model)
        request_id = _request_id(request)
        async with intake.read(request) as body:
            sample = await _sample(request, body, loaded)
            ask = Ask(model, sample, arrived, id=request_id, wants=wants, top_k=wants.top_k)
            answer = await joint.infer(ask)
        return _json(answer.outcome, {"X-Request-Id": answer.outcome.id})

    return router


async def _sample(request: Request, body: bytes, model: LoadedModel) -> bytes | NDArray[Any]:
    """The image or tensor that the body holds, by its content type."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _file(request, body)
    if content_type == TENSOR_TYPE:
        return _tensor(body, model)
    if content_type in IMAGE_TYPES or (content_type in VAGUE_TYPES and _looks_like_image(body)):
        return body
    raise InvalidInput(f"Content-Type: {content_type or 'none'!r} is not one of {_ACCEPTED}")


async def _file(request: Request, body: bytes) -> bytes:
    """The content of the form's one file, which is the field `file`."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=0)
    parser.spool_max_size = len(body)  # it is in memory already; no need for a disk
    try:
        upload = (await parser.parse()).get("file")
        if not isinstance(upload, UploadFile):
            raise InvalidInput("multipart body: the field 'file' with a file is missing")
        return await upload.read()
    except MultiPartException as error:
        raise InvalidInput(f"multipart body: {error.message}") from error
    except ValueError as error:  # a charset that cannot decode the names of the fields
        raise InvalidInput("multipart body: its charset does not fit") from error
    finally:
        # The form knows nothing of a part that is cut off, but its file is open as well.
        for file in parser._files_to_close_on_error:
            file.close()


def _tensor(body: bytes, model: LoadedModel) -> NDArray[Any]:
    spec = model.manifest.input
    if len(body) != spec.bytes:
        raise InvalidInput(
            f"body: a tensor for model {model.name!r} is {spec.datatype}{list(spec.shape)}, "
            f"{spec.bytes} bytes little-endian, got {len(body)}"
        )
    return from_bytes(spec.name, spec.datatype, (1, *spec.shape), body)


def _looks_like_image(body: bytes) -> bool:
    webp = body[:4] == b"RIFF" and body[8:12] == b"WEBP"
    return webp or body.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def _request_id(request: Request) -> str:
    value = request.headers.get("x-request-id", "")
    if value and not _REQUEST_ID.fullmatch(value):
        raise InvalidInput("X-Request-Id: must be 1 to 128 visible ASCII characters")
    return value


def _json(content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers=headers)


def _describe(model: LoadedModel) -> dict[str, Any]:
    manifest, defaults, edge = model.manifest, model.defaults, model.manifest.edge_variant
    return {
        "name": model.name,
        "version": manifest.version,
        "digest": model.digest,
        "task": manifest.task,
        "labels": manifest.labels,
        "accepts": {
            "images": FORMATS if manifest.preprocess else (),
            "tensor": manifest.input.model_dump(),
        },
        "mode": defaults.mode,
        "threshold": defaults.threshold,
        "deadline_ms": defaults.deadline_ms,
        "cuts": [{"name": cut.name, "bytes": cut.bytes} for cut in manifest.cuts],
        "edge": edge.model_dump(include={"name", "precision", "bytes", "accuracy", "latency_ms", "cut"}),
    }


_ERROR: dict[str, Any] = {
    "description": "Refused; the message names the field and the limit.",
    "content": {
        "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        **dict.fromkeys(sorted(IMAGE_TYPES), _BINARY),
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        TENSOR_TYPE: _BINARY,
    },
}
