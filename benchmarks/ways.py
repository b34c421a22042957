"""How a request goes to a server and what a right answer is: bytes made once, and a check of every answer."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.http1 import HttpConnection, post
from benchmarks.http2 import GrpcConnection
from benchmarks.load import Connection, Dial, Reply
from benchmarks.models import Served
from benchmarks.networks import INPUT
from inference_core.tensors import from_response, to_bytes, to_request
from protos import open_inference_pb2 as oip

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
OCTETS = "application/octet-stream"
_TOLERANCE = 0.01  # of the largest logit
_REMEMBERED = 1000
_ID = "1"  # KServe takes no request without

Floats = NDArray[np.float32]


class Judge:
    """Compares answers with what is right; one that was seen before costs a look-up only.

    `part` takes from an answer the bytes that say what was inferred, `read` its values or a label.
    """

    def __init__(
        self, expected: Floats | str, part: Callable[[bytes], bytes], read: Callable[[bytes], Floats | str]
    ) -> None:
        self._expected = expected
        self.part = part
        self._read = read
        self._right: set[bytes] = set()

    def __call__(self, reply: Reply) -> str | None:
        """What is wrong with the answer, None when nothing is."""
        part = self.part(reply.body)
        if part in self._right:
            return None
        try:
            value = self._read(reply.body)
        except Exception as error:  # noqa: BLE001 - whatever a server sends instead of an answer
            return f"{type(error).__name__}: {error} in {reply.body[:200]!r}"
        wrong = _difference(value, self._expected)
        if wrong is None and len(self._right) < _REMEMBERED:
            self._right.add(part)
        return wrong


def _difference(value: Floats | str, expected: Floats | str) -> str | None:
    if isinstance(expected, str) or isinstance(value, str):
        return None if value == expected else f"answered {value!r}, right is {expected!r}"
    if value.size != expected.size:
        return f"answered {value.size} values, right are {expected.size}"
    off = float(np.abs(value.ravel() - expected.ravel()).max())
    limit = _TOLERANCE * float(np.abs(expected).max())
    return None if off <= limit else f"off by {off:.3g}, the limit is {limit:.3g}"


@dataclass(frozen=True)
class Way:
    """One kind of request for one model: how to connect to a port with it, and the check of the answers.

    Ways of one `kind` do the same work: `json`, `binary` (REST with raw tensors), `grpc` or `image`.
    """

    name: str
    kind: str
    dial: Callable[[int], Connection]
    check: Judge

    @property
    def is_grpc(self) -> bool:
        """Whether it goes to the port for gRPC."""
        return self.kind == "grpc"

    def at(self, port: int) -> Dial:
        """Makes connections to `port`."""
        return partial(self.dial, port)


def http(name: str, kind: str, request: bytes, check: Judge) -> Way:
    """The way that sends `request` over HTTP/1.1."""
    return Way(name, kind, lambda port: HttpConnection(port, request), check)


def device(model: Served) -> Way:
    """Tandem's own interface: the tensor's bytes in, the Outcome out."""
    request = post(f"/v1/models/{model.name}/predict", to_bytes(model.sample), OCTETS)
    return http("device, tensor bytes", "binary", request, Judge(model.label, _prediction, _label))


def image(model: str, content: bytes, label: str) -> Way:
    """Tandem's own interface: a JPEG in, the Outcome out."""
    request = post(f"/v1/models/{model}/predict", content, "image/jpeg")
    return http("device, JPEG", "image", request, Judge(label, _prediction, _label))


def oip_binary(model: Served) -> Way:
    """The Open Inference Protocol over REST with binary tensors both ways."""
    data = to_bytes(model.sample)
    head = json.dumps(
        {
            "id": _ID,
            "inputs": [_described(model.sample) | {"parameters": {"binary_data_size": len(data)}}],
            "parameters": {"binary_data_output": True},
        },
        separators=(",", ":"),
    ).encode()
    request = post(
        f"/v2/models/{model.name}/infer",
        head + data,
        OCTETS,
        {"Inference-Header-Content-Length": str(len(head))},
    )
    return http("OIP binary", "binary", request, _raw_judge(model.logits))


def oip_json(model: Served) -> Way:
    """The Open Inference Protocol over REST with the values in JSON both ways, flat."""
    body = orjson.dumps(
        {"id": _ID, "inputs": [_described(model.sample) | {"data": model.sample.ravel()}]},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    judge = Judge(model.logits, _data, _first_output)
    return http("OIP JSON", "json", post(f"/v2/models/{model.name}/infer", body, "application/json"), judge)


def grpc_infer(model: Served) -> Way:
    """The Open Inference Protocol over gRPC, `ModelInfer` with raw contents."""
    content = to_request(model.name, "", {INPUT: model.sample}, {}, _ID).SerializeToString()
    judge = Judge(model.logits, partial(_tail, model.logits.nbytes), _from_protobuf)
    return Way("gRPC", "grpc", lambda port: GrpcConnection(port, MODEL_INFER, content), judge)


def json_values(model: Served, path: str, key: str) -> Way:
    """A server's own JSON: `{key: values}` in, nested as the tensor is, `{"logits": values}` out."""
    body = orjson.dumps({key: model.sample}, option=orjson.OPT_SERIALIZE_NUMPY)
    judge = Judge(model.logits, bytes, _logits)
    return http("JSON", "json", post(path, body, "application/json"), judge)


def json_base64(model: Served, path: str, key: str) -> Way:
    """The same with the tensor's bytes in base64."""
    body = orjson.dumps({key: base64.b64encode(to_bytes(model.sample)).decode()})
    judge = Judge(model.logits, bytes, _logits)
    return http("base64 in JSON", "binary", post(path, body, "application/json"), judge)


def _raw_judge(logits: Floats) -> Judge:
    size = logits.nbytes
    return Judge(logits, partial(_tail, size), lambda body: np.frombuffer(_tail(size, body), "<f4"))


def _described(sample: Floats) -> dict[str, Any]:
    return {"name": INPUT, "datatype": "FP32", "shape": list(sample.shape)}


def _tail(size: int, body: bytes) -> bytes:
    return body[-size:]


def _prediction(body: bytes) -> bytes:
    """What lies between the prediction and the edge's own answer."""
    start = body.find(b'"prediction":')
    return body[start : body.find(b'"edge":', start)] if start >= 0 else body


def _label(body: bytes) -> str:
    return str(orjson.loads(body)["prediction"]["label"])


def _data(body: bytes) -> bytes:
    start = body.find(b'"data":')
    return body[start : body.find(b"]", start)] if start >= 0 else body


def _first_output(body: bytes) -> Floats:
    return np.asarray(orjson.loads(body)["outputs"][0]["data"], np.float32)


def _logits(body: bytes) -> Floats:
    return np.asarray(orjson.loads(body)["logits"], np.float32)


def _from_protobuf(body: bytes) -> Floats:
    outputs = from_response(oip.ModelInferResponse.FromString(body))
    return np.asarray(next(iter(outputs.values())), np.float32)
