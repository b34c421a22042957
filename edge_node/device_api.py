"""The devices' interface: an image or a tensor in the body, the Outcome in the answer."""

import re
import time
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, Path, Response
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from edge_node.front import Call, Handler, Reply
from edge_node.joint import JointInference
from edge_node.model_slot import LoadedModel, ModelSlots
from edge_node.preferences import Wishes
from edge_node.request import Ask
from inference_core.body import Body, Intake
from inference_core.content_encoding import inflated
from inference_core.errors import InvalidInput
from inference_core.preprocess import FORMATS
from inference_core.tensors import from_bytes

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
TENSOR_TYPE = "application/octet-stream"
# What curl says of `--data-binary` on its own: nothing about the body.
VAGUE_TYPES = frozenset({"", "application/x-www-form-urlencoded"})
TOP_K = 5
_MEMORABLE = 256  # bytes of a query that is worth remembering
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ACCEPTED = ", ".join([*sorted(IMAGE_TYPES), "multipart/form-data (field 'file')", TENSOR_TYPE])

Model = Annotated[str, Path(description="name of a served model", examples=["digits"])]


class Wants(Wishes):
    """The query parameters of a prediction."""

    top_k: int = Field(TOP_K, ge=1, le=1000, description="how many classes to list")


_NOTHING_WANTED = Wants(top_k=TOP_K)


def create_device_api(slots: ModelSlots) -> APIRouter:
    """The routes under `/v1` that describe; what predicts is `create_predict`'s."""
    router = APIRouter(prefix="/v1", tags=["devices"])

    @router.get("/models", summary="The served models")
    async def list_models() -> Response:
        return _json({"models": [_describe(model) for model in slots.all()]})

    @router.get("/models/{model}", summary="One model: labels, input, cuts, settings")
    async def get_model(model: Model) -> Response:
        return _json(_describe(slots.get(model)))

    return router


def create_predict(slots: ModelSlots, joint: JointInference, intake: Intake) -> Handler:
    """What answers predictions."""

    async def predict(call: Call) -> Reply:
        arrived = time.monotonic()
        model = slots.get(call.model)
        request_id = _request_id(call)
        wants = _asked(call.query) if call.query else _NOTHING_WANTED
        async with intake.read(call.headers, call.receive) as raw:
            body = await inflated(raw, call.header(b"content-encoding"), intake.max_body_bytes)
            with intake.holding(len(body) if body is not raw else 0):
                sample = await _sample(call, body, model)
                ask = Ask(model, sample, arrived, request_id, wants, wants.top_k)
                (answer,) = await joint.infer_all([ask])
        outcome = answer.outcome
        return Reply(orjson.dumps(outcome), headers=[(b"x-request-id", outcome.id.encode())])

    return predict


def _asked(query: bytes) -> Wants:
    return _known_wants(query) if len(query) <= _MEMORABLE else _wants(query)


def _wants(query: bytes) -> Wants:
    """The query parameters; `InvalidInput`, which names the one that is wrong or given twice."""
    wanted: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in wanted:
            raise InvalidInput(f"{name:.100}: is given twice, the limit is once")
        wanted[name] = value
    try:
        return Wants.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{name:.100}: {first['msg']}, got {first['input']!r:.100}") from error


_known_wants = lru_cache(maxsize=256)(_wants)


async def _sample(call: Call, body: Body, model: LoadedModel) -> bytes | NDArray[Any]:
    """The image or tensor that the body holds, by its content type."""
    content_type = call.header(b"content-type").partition(";")[0].strip().lower()
    if content_type == TENSOR_TYPE:
        return _tensor(body, model)
    if content_type in IMAGE_TYPES or (content_type in VAGUE_TYPES and _looks_like_image(body)):
        return bytes(body)
    if content_type == "multipart/form-data":
        return await _file(call, bytes(body))
    raise InvalidInput(f"Content-Type: {content_type or 'none'!r} is not one of {_ACCEPTED}")


async def _file(call: Call, body: bytes) -> bytes:
    """The content of the form's one file, which is the field `file`."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(Headers(raw=list(call.headers.items())), stream(), max_files=1, max_fields=0)
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


def _tensor(body: Body, model: LoadedModel) -> NDArray[Any]:
    spec = model.manifest.input
    if len(body) != spec.bytes:
        raise InvalidInput(
            f"body: a tensor for model {model.name!r} is {spec.datatype}{list(spec.shape)}, "
            f"{spec.bytes} bytes little-endian, got {len(body)}"
        )
    tensor = from_bytes(spec.name, spec.datatype, (1, *spec.shape), memoryview(body).toreadonly())
    model.check({spec.name: tensor})
    return tensor


def _looks_like_image(body: Body) -> bool:
    webp = body[:4] == b"RIFF" and body[8:12] == b"WEBP"
    return webp or body.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def _request_id(call: Call) -> str:
    value = call.header(b"x-request-id")
    if value and not _REQUEST_ID.fullmatch(value):
        raise InvalidInput("X-Request-Id: must be 1 to 128 visible ASCII characters")
    return value


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


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
