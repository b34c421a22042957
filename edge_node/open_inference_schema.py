"""What the routes that describe the models answer, for the documentation: the protocol's own schemas."""

from typing import Any

Responses = dict[int | str, dict[str, Any]]


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(description: str, schema: dict[str, Any]) -> Responses:
    return {200: {"description": description, "content": _content(schema)}}


_TEXT, _WHOLE, _FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_ERROR = _object(error=_TEXT) | {"required": ["error"]}
_TENSORS = _list(_object(name=_TEXT, datatype=_TEXT, shape=_list(_WHOLE)))
_DIMS = _list(_object(name=_TEXT, data_type=_TEXT, dims=_list(_WHOLE)))
_DURATION = _object(count=_WHOLE, ns=_WHOLE)
_STAGES = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)
_ENTRY = _object(name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)
_STATISTICS = _object(
    name=_TEXT,
    version=_TEXT,
    last_inference=_WHOLE | {"description": "milliseconds since 1970, 0 for never"},
    inference_count=_WHOLE | {"description": "samples answered"},
    execution_count=_WHOLE | {"description": "runs of the model"},
    inference_stats=_object(
        success=_DURATION,
        fail=_DURATION,
        queue=_DURATION,
        cache_hit=_DURATION,
        cache_miss=_DURATION,
        **_STAGES,
    ),
    batch_stats=_list(_object(batch_size=_WHOLE, **_STAGES)),
)

UNKNOWN: Responses = {
    404: {"description": "There is no such model, or not in this version.", "content": _content(_ERROR)}
}
NOT_READY: Responses = {503: {"description": "Not now: loading or stopping.", "content": _content(_object())}}
SERVER = _answer(
    "Its name and what it understands", _object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT))
)
LIVE = _answer("It is", _object(live=_FLAG))
READY = _answer("It is", _object(live=_FLAG, ready=_FLAG)) | NOT_READY
MODEL_READY = _answer("It is", _object(name=_TEXT, live=_FLAG, ready=_FLAG)) | NOT_READY | UNKNOWN
METADATA = UNKNOWN | _answer(
    "Its inputs and outputs, -1 for the axis of samples",
    _object(name=_TEXT, versions=_list(_TEXT), platform=_TEXT, inputs=_TENSORS, outputs=_TENSORS),
)
CONFIG = UNKNOWN | _answer(
    "Its configuration; dims are without the axis of samples",
    _object(
        name=_TEXT,
        platform=_TEXT,
        backend=_TEXT,
        max_batch_size=_WHOLE,
        input=_DIMS,
        output=_DIMS,
        dynamic_batching=_object(preferred_batch_size=_list(_WHOLE), max_queue_delay_microseconds=_WHOLE),
    ),
)
STATISTICS = UNKNOWN | _answer(
    "Counts, and durations in nanoseconds", _object(model_stats=_list(_STATISTICS))
)
INDEX = _answer("Every model with its state", _list(_ENTRY))
INDEX_REQUEST: dict[str, Any] = {
    "requestBody": {"required": False, "content": _content(_object(ready=_FLAG))},
}

_PARAMETERS = {
    "type": "object",
    "additionalProperties": {"type": ["boolean", "integer", "number", "string"]},
}


def _parameters(description: str) -> dict[str, Any]:
    return _PARAMETERS | {"description": description}


def _tensor(about: str) -> dict[str, Any]:
    data = {"type": "array", "description": "the values row by row, flat or nested; or bytes behind the JSON"}
    size = _parameters("`binary_data_size`: its bytes behind the JSON, where it is not in `data`")
    return _object(name=_TEXT, datatype=_TEXT, shape=_list(_WHOLE), parameters=size, data=data) | {
        "description": about,
        "required": ["name", "datatype", "shape"],
    }


INFER_REQUEST = _object(
    id=_TEXT | {"description": "comes back in the answer"},
    parameters=_parameters(
        "`binary_data_output`: all outputs as bytes; `tandem_mode`, `tandem_cut`, `tandem_deadline_ms`, "
        "`tandem_threshold`, `tandem_priority`, `tandem_keep`: as the devices' interface has them"
    ),
    inputs=_list(_tensor("one input; the first axis holds the samples")),
    outputs=_list(
        _object(
            name=_TEXT,
            parameters=_parameters("`binary_data`: as bytes; `classification`: as so many best classes"),
        )
        | {"required": ["name"]}
    ),
) | {"required": ["inputs"]}
INFER_ANSWER = _object(
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    parameters=_parameters("the outcome, `tandem_source` and more; with commas between several samples"),
    outputs=_list(_tensor("one output")),
)


def tell_refusals_as_they_are_sent(schema: dict[str, Any]) -> None:
    """Change the framework's 422 in the OpenAPI document `schema` to the 400 that is sent."""
    refusal = {"description": "A parameter is wrong; the message names it.", "content": _content(_ERROR)}
    for path in schema["paths"].values():
        for operation in path.values():
            if operation["responses"].pop("422", None) is not None:
                operation["responses"].setdefault("400", refusal)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
