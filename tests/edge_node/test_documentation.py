"""The documentation of the routes for inference: whole in itself, and true of what is taken and answered."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from edge_node.device_api import Wants
from edge_node.documentation import add_inference
from edge_node.policy import Mode
from inference_core.rest import HEADER_LENGTH
from tests.bundles import SURE, UNSURE, picture, pixels
from tests.edge_node.node import node

PREDICT = "/v1/models/{model}/predict"
INFER = "/v2/models/{model}/infer"
VERSION = "/v2/models/{model}/versions/{version}/infer"
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "null": type(None),
}
TENSOR = pixels(SURE).tobytes()


@pytest.fixture
def schema(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def fault(value: Any, schema: dict[str, Any], document: Any, where: str = "") -> str | None:
    """What of `value` does not fit its schema, or None; an object may have no field that is not described."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        faults = [fault(value, choice, document, where) for choice in schema["anyOf"]]
        return None if None in faults else faults[0]
    if "enum" in schema:
        return None if value in schema["enum"] else f"{where}: {value!r} is not one of {schema['enum']}"
    if schema["type"] != "object":
        if not isinstance(value, TYPES[schema["type"]]) or (
            isinstance(value, bool) and schema["type"] != "boolean"
        ):
            return f"{where}: {value!r} is no {schema['type']}"
        items = schema.get("items")
        below = [(item, items, f"{where}.{at}") for at, item in enumerate(value)] if items else []
    else:
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        if not isinstance(value, dict):
            return f"{where}: {value!r} is no object"
        if missing := set(schema.get("required", ())) - value.keys():
            return f"{where}: {missing} is missing"
        if not other and (strange := value.keys() - known.keys()):
            return f"{where}: {strange} is not described"
        below = [(item, known.get(name, other), f"{where}.{name}") for name, item in value.items()]
    return next((found for one in below if (found := fault(one[0], one[1], document, one[2]))), None)


def response(schema: Any, path: str, status: int) -> dict[str, Any]:
    content: dict[str, Any] = schema["paths"][path]["post"]["responses"][str(status)]["content"]
    return content["application/json"]["schema"]  # type: ignore[no-any-return]


def test_it_refers_to_nothing_that_is_not_there(schema: Any) -> None:
    wanted = {node["$ref"] for node in walk(schema) if isinstance(node.get("$ref"), str)}
    assert {"#/components/schemas/Outcome", "#/components/schemas/Mode"} <= wanted
    assert wanted == {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert [node for node in walk(schema) if "$defs" in node] == []


def test_each_operation_has_a_name_of_its_own(schema: Any) -> None:
    names = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert {"predict", "infer", "infer_version"} <= set(names)


def test_every_part_of_a_path_is_described(schema: Any) -> None:
    for path in (PREDICT, INFER, VERSION):
        described = schema["paths"][path]["post"]["parameters"]
        named = [item["name"] for item in described if item["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", path)
        assert all(item["required"] and item["description"] for item in described if item["in"] == "path")


def test_the_parameters_of_a_prediction_are_those_that_are_taken(client: TestClient, schema: Any) -> None:
    described = schema["paths"][PREDICT]["post"]["parameters"]
    query = {item["name"]: item for item in described if item["in"] == "query"}
    assert query.keys() == Wants.model_fields.keys()
    assert all(item["description"] for item in query.values())
    assert query["top_k"]["schema"]["default"] == 5
    assert schema["components"]["schemas"]["Mode"]["enum"] == [mode.value for mode in Mode]
    for name, value in {"mode": "edge", "deadline_ms": 500, "threshold": 0.5, "top_k": 2}.items():
        assert fault(value, query[name]["schema"], schema) is None
        assert predict(client, {name: value}).status_code == 200
    for name, value in {"mode": "x", "deadline_ms": "x", "threshold": "x", "top_k": "x"}.items():
        assert fault(value, query[name]["schema"], schema)
        assert predict(client, {name: value}).status_code == 400
    assert predict(client, {"verbosity": 1}).status_code == 400  # for it is not described


def predict(client: TestClient, query: dict[str, Any], content: bytes = TENSOR) -> Any:
    headers = {"Content-Type": "application/octet-stream"}
    return client.post(PREDICT.format(model="colors"), content=content, headers=headers, params=query)


@pytest.mark.parametrize("mode", list(Mode))
def test_outcomes_have_the_form_that_is_described(client: TestClient, schema: Any, mode: Mode) -> None:
    described = response(schema, PREDICT, 200)
    for color in (SURE, UNSURE):
        answer = predict(client, {"mode": mode.value}, pixels(color).tobytes())
        assert answer.status_code == 200
        assert fault(answer.json(), described, schema) is None
        assert fault(answer.json() | {"source": "elsewhere"}, described, schema)
        assert fault(answer.json() | {"more": 1}, described, schema)
        assert fault({key: value for key, value in answer.json().items() if key != "id"}, described, schema)


def test_bodies_of_every_type_that_is_described_are_taken(client: TestClient, schema: Any) -> None:
    bodies: dict[str, Any] = {
        f"image/{form.lower()}": {"content": picture(SURE, form)} for form in ("JPEG", "PNG", "WEBP")
    }
    bodies["application/octet-stream"] = {"content": TENSOR}
    described = schema["paths"][PREDICT]["post"]["requestBody"]["content"]
    assert described.keys() == bodies.keys() | {"multipart/form-data"}
    url = PREDICT.format(model="colors")
    for content_type, body in bodies.items():
        assert client.post(url, headers={"Content-Type": content_type}, **body).status_code == 200
    (field,) = described["multipart/form-data"]["schema"]["required"]
    assert client.post(url, files={field: picture(SURE)}).status_code == 200


@pytest.mark.parametrize("path", [PREDICT, INFER, VERSION])
def test_refusals_have_the_form_that_is_described(colors: Path, path: str) -> None:
    url, elsewhere = (path.format(model=model, version="1") for model in ("colors", "shapes"))
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
    good: dict[str, Any] = {"content": TENSOR} if path == PREDICT else {"json": {"inputs": [tensor]}}
    with node(colors, loaded=False, max_body_bytes=4096) as edge, TestClient(edge.app()) as client:
        schema = client.get("/openapi.json").json()
        refused = [client.post(url, **good)]
        edge.load()
        refused += [client.post(url, content=b"nonsense"), client.post(elsewhere, **good)]
        refused.append(client.post(url, content=bytes(4097)))
    assert [answer.status_code for answer in refused] == [503, 400, 404, 413]
    for answer in refused:
        assert fault(answer.json(), response(schema, path, answer.status_code), schema) is None
    assert "retry-after" in refused[0].headers


def test_the_length_of_the_json_is_described(schema: Any) -> None:
    for path in (INFER, VERSION):
        described = schema["paths"][path]["post"]["parameters"]
        (header,) = [item for item in described if item["in"] == "header"]
        assert header["name"].lower() == HEADER_LENGTH
        assert not header["required"]


def test_what_was_in_the_document_stays() -> None:
    own = {"type": "object"}
    document: Any = {"paths": {"/own": {"get": {}}}, "components": {"schemas": {"Own": own}}}
    add_inference(document)
    assert document["paths"].keys() == {"/own", PREDICT, INFER, VERSION}
    assert document["components"]["schemas"]["Own"] is own
    bare: Any = {"paths": {}}
    add_inference(bare)
    assert "Outcome" in bare["components"]["schemas"]
