"""The documentation of the routes that describe: that it is there, and that what is answered fits it."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from edge_node.open_inference_schema import tell_refusals_as_they_are_sent
from tests.bundles import SURE, picture

PREDICT = "/v1/models/colors/predict"


@pytest.fixture
def schema(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def operations(schema: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def fits(value: Any, schema: dict[str, Any]) -> None:
    """Fail unless `value` has exactly the form that `schema` tells, as deep as it goes."""
    kinds = {"object": "dict", "array": "list", "string": "str", "integer": "int", "boolean": "bool"}
    assert type(value).__name__ == kinds[schema["type"]], (value, schema)
    if schema["type"] == "array" and "items" in schema:
        for item in value:
            fits(item, schema["items"])
    if schema["type"] == "object" and "properties" in schema:
        assert value.keys() <= schema["properties"].keys(), (value, schema)
        assert value.keys() >= set(schema.get("required", ()))
        for name, item in value.items():
            fits(item, schema["properties"][name])


def test_every_route_of_the_protocol_tells_what_it_answers(client: TestClient, schema: Any) -> None:
    # So that there are numbers to show.
    answer = client.post(PREDICT, content=picture(SURE), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    seen = 0
    for path, method, operation in operations(schema):
        if path.startswith("/v2") and not path.endswith("/infer"):
            url = path.format(model="colors", version="1")
            answer = client.request(method, url)
            assert answer.status_code == 200, url
            described = operation["responses"]["200"]
            assert described["description"] not in ("", "Successful Response"), url
            fits(answer.json(), described["content"]["application/json"]["schema"])
            seen += 1
    assert seen == 13


def test_infer_has_the_documented_form(client: TestClient, schema: Any) -> None:
    asked = {
        "id": "7",
        "parameters": {"tandem_mode": "edge"},
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
    }
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        described = schema["paths"][path]["post"]
        fits(asked, described["requestBody"]["content"]["application/json"]["schema"])
        answer = client.post(path.format(model="colors", version="1"), json=asked)
        assert answer.status_code == 200
        fits(answer.json(), described["responses"]["200"]["content"]["application/json"]["schema"])


def test_unknown_models_are_told_as_the_documentation_says(client: TestClient, schema: Any) -> None:
    seen = 0
    for path, method, operation in operations(schema):
        if path.startswith("/v2/models/{model}") and method == "get":
            for url in {path.format(model="shapes", version="1"), path.format(model="colors", version="9")}:
                answer = client.get(url)
                if answer.status_code != 200:  # colors, where the path has no version
                    assert answer.status_code == 404
                    fits(
                        answer.json(), operation["responses"]["404"]["content"]["application/json"]["schema"]
                    )
                    seen += 1
    assert seen == 12


def test_no_status_is_told_that_is_not_sent(schema: Any) -> None:
    assert [path for path, _, operation in operations(schema) if "422" in operation["responses"]] == []
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_the_frameworks_refusal_becomes_ours() -> None:
    schema: Any = {
        "paths": {
            "/a": {"get": {"responses": {"200": {}, "422": {}}}},
            "/b": {"get": {"responses": {"200": {}, "400": {"description": "own"}, "422": {}}}},
            "/c": {"get": {"responses": {"200": {}}}},
        },
        "components": {"schemas": {"HTTPValidationError": {}, "ValidationError": {}, "Outcome": {}}},
    }
    tell_refusals_as_they_are_sent(schema)
    responses = [operation["responses"] for _, _, operation in operations(schema)]
    assert [sorted(item) for item in responses] == [["200", "400"], ["200", "400"], ["200"]]
    assert responses[1]["400"] == {"description": "own"}
    assert schema["components"]["schemas"].keys() == {"Outcome"}
