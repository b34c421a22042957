"""What the cloud's reply is worth: an answer that can be used, or a `CloudUnavailable` that says why not."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from edge_node.cloud import Query
from inference_core.errors import (
    CloudRefused,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
    InvalidInput,
)
from inference_core.tensors import DATATYPES, Parameter, from_response, get_parameters
from inference_core.wire import parse
from protos import open_inference_pb2 as oip

# On a stream, which has one status for all, that of one request travels as this parameter of its answer.
STATUS = "tandem_status"

REFUSALS: dict[grpc.StatusCode, Callable[[str], CloudUnavailable]] = {
    grpc.StatusCode.OK: lambda text: CloudRefused(text, "invalid_answer"),
    grpc.StatusCode.UNAVAILABLE: CloudUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    # Calls are cancelled by the other side when it stops.
    grpc.StatusCode.CANCELLED: CloudUnreachable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: lambda text: CloudRefused(text, "overloaded"),
    grpc.StatusCode.FAILED_PRECONDITION: lambda text: CloudRefused(text, "version_mismatch"),
    grpc.StatusCode.NOT_FOUND: lambda text: CloudRefused(text, "model_missing"),
    grpc.StatusCode.UNIMPLEMENTED: lambda text: CloudRefused(text, "model_missing"),
    grpc.StatusCode.INVALID_ARGUMENT: lambda text: CloudRefused(text, "input_refused"),
    grpc.StatusCode.OUT_OF_RANGE: lambda text: CloudRefused(text, "input_refused"),
    grpc.StatusCode.UNAUTHENTICATED: lambda text: CloudRefused(text, "unauthorized"),
    grpc.StatusCode.PERMISSION_DENIED: lambda text: CloudRefused(text, "unauthorized"),
    grpc.StatusCode.INTERNAL: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.UNKNOWN: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.DATA_LOSS: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.ABORTED: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.ALREADY_EXISTS: lambda text: CloudRefused(text, "cloud_error"),
}


# Which of the refusals with one status it is, where that makes a difference: a parameter of the answer on a
# stream, trailing metadata of a call.
REASON = "tandem_reason"
REASON_KEY = "tandem-reason"
TOO_LARGE = "too_large"
_OVER_THE_LIMIT = "larger than max"  # gRPC's own words, which is all that it says


def refusal(code: grpc.StatusCode, text: str, reason: str = "") -> CloudUnavailable:
    """What a status other than OK makes of a request; `reason` is what the cloud has said beside it."""
    message = f"{code.name}: {text}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (reason == TOO_LARGE or _OVER_THE_LIMIT in text):
        return CloudRefused(message, TOO_LARGE)
    return REFUSALS[code](message)


def failure(error: grpc.aio.AioRpcError) -> CloudUnavailable:
    """What the failure of a call makes of its request."""
    metadata = error.trailing_metadata() or ()
    reason = next((value for key, value in metadata if key == REASON_KEY), "")
    return refusal(error.code(), error.details() or "", str(reason))


def stated(response: oip.ModelStreamInferResponse) -> CloudUnavailable:
    """What an answer with an `error_message` makes of its request; other servers name no status."""
    parameters = response.infer_response.parameters
    code = grpc.StatusCode.__members__.get(parameters[STATUS].string_param, grpc.StatusCode.UNKNOWN)
    error = refusal(code, response.error_message, parameters[REASON].string_param)
    error.stated = True
    return error


def parsed(data: bytes) -> oip.ModelInferResponse:
    """The message in `data`; `CloudRefused` when there is none."""
    try:
        return parse(oip.ModelInferResponse, data)
    except InvalidInput as error:
        raise CloudRefused(f"the answer: {error}", "invalid_answer") from error


def usable(response: oip.ModelInferResponse, query: Query) -> tuple[NDArray[Any], dict[str, Parameter]]:
    """The expected output of `response` and its parameters; `CloudRefused` where they make no sense."""
    expect = query.expect
    try:
        outputs, parameters = from_response(response), get_parameters(response.parameters)
    except InvalidInput as error:
        raise CloudRefused(str(error), "invalid_answer") from error
    logits = outputs.get(expect.name)
    wanted = DATATYPES[expect.datatype]
    if logits is None or logits.dtype != wanted or logits.shape != (1, *expect.shape):
        raise CloudRefused(f"the answer holds no {wanted} output {expect.name!r}", "invalid_answer")
    if not np.isfinite(logits).all():
        raise CloudRefused("the answer holds a NaN or an infinity", "invalid_answer")
    if response.model_version not in ("", query.version):
        raise CloudRefused(f"version {response.model_version} answered", "version_mismatch")
    return logits, parameters
