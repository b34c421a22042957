"""What edge nodes say beside inference, over gRPC: samples for the cloud to learn from.

Each is labelled by the full model, when nobody else needs that, and stored once by its key.
"""

import asyncio
import logging
import math
import re
import time
from typing import Any

import grpc
import numpy as np

from cloud_service.decoders import Decoders
from cloud_service.decoding import IMAGE
from cloud_service.identity import caller_of, is_certified
from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served
from cloud_service.sample_metrics import REASONS
from cloud_service.sample_table import Content, Label, Record
from cloud_service.samples import Samples
from inference_core.errors import Forbidden, InvalidInput, TandemError, grpc_status
from inference_core.limits import MAX_DIMENSIONS, check_count
from inference_core.priority import Priority
from inference_core.tensors import Tensors, from_bytes, objects
from protos import fleet_pb2 as pb
from protos import fleet_pb2_grpc as fleet_grpc

SERVICE = "tandem.fleet.v1.Fleet"
_KEY = re.compile(r"[0-9a-f]{32}")
_MAX_TEXT, _MAX_TENSORS = 256, 64
_PATIENCE_S = 30.0  # for a run, where the caller has set no deadline
_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


class Fleet(fleet_grpc.FleetServicer):
    """Answers the calls of the fleet's protocol."""

    def __init__(self, models: Models, metrics: Metrics, decoders: Decoders, samples: Samples | None) -> None:
        """Without `samples`, none are taken."""
        self._models = models
        self._decoders = decoders
        self._samples = samples
        self._method = metrics.method("unary", SERVICE, "PutSample")

    async def PutSample(self, request: pb.PutSampleRequest, context: _Context) -> pb.PutSampleResponse:
        self._method.started.inc()
        started, code = time.monotonic(), grpc.StatusCode.OK
        try:
            if self._samples is None:
                code = grpc.StatusCode.UNIMPLEMENTED
                await context.abort(code, "samples are not stored here: CLOUD_SAMPLES is empty")
            left_s = context.time_remaining()
            deadline = started + (_PATIENCE_S if left_s is None else left_s)
            node, caller = _node(request, context), caller_of(context)
            return await self._put(self._samples, request, node, caller, deadline)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            raise
        except TandemError as error:
            code = grpc.StatusCode[grpc_status(error)]
            if code is grpc.StatusCode.INTERNAL:
                _log.error("PutSample failed: %s", error)
            await context.abort(code, str(error))
        except Exception as error:  # noqa: BLE001 - a bug must cost one call, not the service
            code = grpc.StatusCode.INTERNAL
            _log.error("PutSample failed unexpectedly", exc_info=error)
            await context.abort(code, "internal error; the service's log has the details")
        finally:
            self._method.handled(code.name).inc()
            self._method.seconds.observe(time.monotonic() - started)

    async def _put(
        self, samples: Samples, request: pb.PutSampleRequest, node: str, caller: str, deadline: float
    ) -> pb.PutSampleResponse:
        """Look it up, else label and store it: only then it is acknowledged."""
        _check(request)
        stored, known = await samples.find(request.key), True
        if stored is None:
            form, contents = _contents(request)
            served = self._models.get(_model(request.model, form), request.version, request.bundle)
            label = await self._label(served, _inputs(form, contents), deadline, caller)
            stored, known = await samples.put(_record(request, node, form, contents, served), label)
        return pb.PutSampleResponse(index=stored.index, label=stored.name, known=known)

    async def _label(self, served: Served, inputs: Tensors, deadline: float, caller: str) -> Label:
        """What the full model says. Raises `InvalidInput` for what it does not take or cannot judge."""
        priority = Priority.BACKGROUND
        if served.decoder is not None:
            served.batcher.admit(inputs, deadline, priority=priority, caller=caller)
            inputs = await self._decoders.decode(
                served.decoder, inputs, deadline, priority=priority, caller=caller
            )
        batched = await served.batcher.submit(inputs, deadline, priority=priority, caller=caller)
        (logits,) = batched.outputs.values()
        if not np.isfinite(logits).all():
            raise InvalidInput("the full model's answer holds a NaN or an infinity")
        index = int(np.argmax(logits[0]))
        return Label(index, served.labels[index])


def _node(request: pb.PutSampleRequest, context: _Context) -> str:
    """Whose sample it is: what the certificate says, where there is one; else what the message says."""
    if not is_certified(context):
        return request.node
    node = caller_of(context)
    if request.node not in ("", node):
        raise Forbidden(f"node: the message says {request.node!r:.150}, the certificate {node!r}")
    return node


def _model(name: str, form: str) -> str:
    """The cloud's name for what takes samples of this form."""
    return name if form == "tensor" else f"{name}.{form.replace('features', 'tail', 1)}"


def _check(request: pb.PutSampleRequest) -> None:
    """Raise `InvalidInput` for what no node would send."""
    if not _KEY.fullmatch(request.key):
        raise InvalidInput(f"key: must be 32 hexadecimal digits, got {request.key!r:.100}")
    if request.reason not in REASONS:
        raise InvalidInput(f"reason: {request.reason!r:.100} is not one of {', '.join(REASONS)}")
    texts = {"node": request.node, "model": request.model, "version": request.version}
    texts |= {"bundle": request.bundle, "edge.label": request.edge.label, "cut": request.features.cut}
    for name, text in texts.items():
        if len(text) > _MAX_TEXT:
            raise InvalidInput(f"{name}: {len(text)} characters, the limit is {_MAX_TEXT}")
    for number in (request.kept_at, request.edge.confidence, request.edge.threshold):
        if not math.isfinite(number):
            raise InvalidInput("kept_at, edge: hold a NaN or an infinity")


def _contents(request: pb.PutSampleRequest) -> tuple[str, tuple[Content, ...]]:
    """What the sample is and its tensors; an image is one of BYTES."""
    kind = request.WhichOneof("content")
    if kind == "image":
        return kind, (Content(IMAGE, "BYTES", (1,), request.image),)
    if kind == "tensor":
        return kind, (_content(request.tensor),)
    if kind == "features":
        tensors = request.features.tensors
        check_count("features", len(tensors), "tensors", _MAX_TENSORS)
        return f"features.{request.features.cut}", tuple(map(_content, tensors))
    raise InvalidInput("content: there is none")


def _content(tensor: pb.Tensor) -> Content:
    if len(tensor.name) > _MAX_TEXT:
        raise InvalidInput(f"tensor: a name of {len(tensor.name)} characters, the limit is {_MAX_TEXT}")
    check_count("tensor", len(tensor.shape), "dimensions", MAX_DIMENSIONS)
    return Content(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.data)


def _inputs(form: str, contents: tuple[Content, ...]) -> Tensors:
    """The tensors of one sample. Raises `InvalidInput`."""
    if form == IMAGE:
        return {IMAGE: objects([contents[0].data])}
    found = {c.name: from_bytes(c.name, c.datatype, c.shape, c.data) for c in contents}
    if len(found) != len(contents):
        raise InvalidInput("features: two tensors have the same name")
    if any(array.shape[:1] != (1,) for array in found.values()):
        raise InvalidInput("content: must be one sample, with a first axis of 1")
    return found


def _record(
    request: pb.PutSampleRequest, node: str, form: str, contents: tuple[Content, ...], served: Served
) -> Record:
    edge = None
    if request.HasField("edge"):
        answer = Label(request.edge.index, request.edge.label)
        edge = answer, request.edge.confidence, request.edge.threshold
    return Record(
        request.key, node, request.model, served.version, served.digest, request.reason, request.kept_at,
        form, edge, contents,
    )  # fmt: skip
