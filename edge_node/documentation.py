"""The documentation of the two routes that the front answers, which the framework knows nothing of."""

from typing import Any

from pydantic import TypeAdapter

from edge_node.device_api import IMAGE_TYPES, TENSOR_TYPE, Wants
from edge_node.open_inference_schema import INFER_ANSWER, INFER_REQUEST
from edge_node.outcome import Outcome

_SCHEMAS = "#/components/schemas/{model}"
_REFUSALS = {
    400: "The request is wrong; the message names the field, the value and the limit.",
    404: "There is no such model, or not in this version.",
    413: "The body is over the limit.",
    500: "The model failed.",
    503: "Loading or busy; try again after the time in `Retry-After`.",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def add_inference(schema: dict[str, Any]) -> None:
    """Add the routes for inference to the OpenAPI document `schema`."""
    outcome = TypeAdapter(Outcome).json_schema(mode="serialization", ref_template=_SCHEMAS)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas |= outcome.pop("$defs", {}) | {"Outcome": outcome}
    wants = Wants.model_json_schema(ref_template=_SCHEMAS)
    schemas |= wants.pop("$defs", {})
    schema["paths"]["/v1/models/{model}/predict"] = {"post": _predict(wants["properties"])}
    for version in ("", "/versions/{version}"):
        schema["paths"][f"/v2/models/{{model}}{version}/infer"] = {"post": _infer(bool(version))}


def _predict(wants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    query = [
        {"name": name, "in": "query", "required": False, "schema": field}
        | ({"description": field["description"]} if "description" in field else {})
        for name, field in wants.items()
    ]
    form = {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}
    bodies = dict.fromkeys([*sorted(IMAGE_TYPES), TENSOR_TYPE], _BINARY)
    return {
        "tags": ["devices"],
        "summary": "Classify one image or tensor",
        "operationId": "predict",
        "parameters": [_path("model", "name of a served model"), *query],
        "requestBody": {"required": True, "content": bodies | {"multipart/form-data": {"schema": form}}},
        "responses": _responses("The outcome", {"schema": {"$ref": _SCHEMAS.format(model="Outcome")}}),
    }


def _infer(versioned: bool) -> dict[str, Any]:
    path = [_path("model", "name of a served model")]
    if versioned:
        path.append(_path("version", "its version"))
    length = {"type": "integer", "description": "Bytes of the JSON part, where tensors follow it as bytes."}
    return {
        "tags": ["open inference protocol"],
        "summary": "Infer",
        "operationId": "infer_version" if versioned else "infer",
        "parameters": [
            *path,
            {"name": "Inference-Header-Content-Length", "in": "header", "required": False, "schema": length},
        ],
        "requestBody": {
            "required": True,
            "description": "An Open Inference Protocol request, its tensors as JSON or as bytes behind it.",
            "content": {"application/json": {"schema": INFER_REQUEST}, "application/octet-stream": _BINARY},
        },
        "responses": _responses("The answer, its tensors as they were asked for", {"schema": INFER_ANSWER}),
    }


def _path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} | {
        "description": description
    }


def _responses(description: str, content: dict[str, Any]) -> dict[str, Any]:
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    refusals = {
        str(status): {"description": text, "content": {"application/json": {"schema": error}}}
        for status, text in _REFUSALS.items()
    }
    return {"200": {"description": description, "content": {"application/json": content}}} | refusals
