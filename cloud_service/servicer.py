"""The Open Inference Protocol over gRPC: wire to arrays, one model, arrays to wire.

The only file of the service that touches gRPC.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from cloud_service.deadline import time_left
from cloud_service.decoders import Decoders
from cloud_service.identity import caller_of
from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served
from cloud_service.stream import REASON_KEY, TOO_LARGE, Stream, wrapped
from cloud_service.waiter import Batched
from inference_core.body import Intake
from inference_core.catalogue import Catalogue
from inference_core.classification import check_outputs, class_count, select
from inference_core.errors import TandemError, TooLarge, grpc_status, shortened
from inference_core.priority import Priority, asked_priority
from inference_core.tensors import Parameter, from_request, get_outputs, get_parameters, to_response
from inference_core.wire import parse
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc

SERVICE = "inference.GRPCInferenceService"
_BIDI = "bidi_stream"
_FOREVER_S = 3600.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)
_Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Answers each call of the protocol from `Models`."""

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        decoders: Decoders,
        catalogue: Catalogue,
        max_inflight: int = 256,
        intake: Intake | None = None,
    ) -> None:
        """`max_inflight` bounds the requests of one stream that are being answered, `intake` the bytes of all
        requests; None for those of one service with its default settings."""
        self.intake = intake or Intake(16 << 20, 256 << 20)
        self._max_inflight = max_inflight
        self._streams: set[Stream] = set()
        self._models = models
        self._metrics = metrics
        self._decoders = decoders
        self._catalogue = catalogue

    async def ServerLive(self, request: oip.ServerLiveRequest, context: _Context) -> oip.ServerLiveResponse:
        return await self._handle("ServerLive", context, _ready(oip.ServerLiveResponse(live=True)))

    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: _Context
    ) -> oip.ServerReadyResponse:
        answer = oip.ServerReadyResponse(ready=self._catalogue.ready)
        return await self._handle("ServerReady", context, _ready(answer))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: _Context) -> oip.ModelReadyResponse:
        ready = self._catalogue.model_ready(request.name, request.version)
        return await self._handle("ModelReady", context, _ready(oip.ModelReadyResponse(ready=ready)))

    async def ServerMetadata(
        self,
        request: oip.ServerMetadataRequest,
        context: _Context,
    ) -> oip.ServerMetadataResponse:
        work = _told(oip.ServerMetadataResponse(), self._catalogue.server)
        return await self._handle("ServerMetadata", context, work)

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: _Context
    ) -> oip.ModelMetadataResponse:
        work = _told(oip.ModelMetadataResponse(), self._catalogue.metadata, request.name, request.version)
        return await self._handle("ModelMetadata", context, work)

    async def ModelConfig(
        self, request: oip.ModelConfigRequest, context: _Context
    ) -> oip.ModelConfigResponse:
        answer = oip.ModelConfigResponse()
        work = _told(answer, lambda: {"config": self._catalogue.config(request.name, request.version)})
        return await self._handle("ModelConfig", context, work)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: _Context
    ) -> oip.ModelStatisticsResponse:
        work = _told(oip.ModelStatisticsResponse(), self._catalogue.statistics, request.name, request.version)
        return await self._handle("ModelStatistics", context, work)

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: _Context
    ) -> oip.RepositoryIndexResponse:
        work = _told(oip.RepositoryIndexResponse(), lambda: {"models": self._catalogue.index(request.ready)})
        return await self._handle("RepositoryIndex", context, work)

    async def ModelInfer(self, data: bytes, context: _Context) -> bytes:
        encode = oip.ModelInferResponse.SerializeToString
        caller, left_s = caller_of(context), context.time_remaining()
        work = self._infer(lambda: parse(oip.ModelInferRequest, data), len(data), encode, caller, left_s)
        return await self._handle("ModelInfer", context, work)

    async def ModelStreamInfer(self, _: object, context: _Context) -> None:
        method = self._metrics.method(_BIDI, SERVICE, "ModelStreamInfer")
        answer = partial(self._infer_streamed, caller_of(context))
        stream = Stream(
            context, answer, self._refuse, self._status,
            limit=self._max_inflight, on_received=method.received.inc, on_sent=method.sent.inc,
        )  # fmt: skip
        self._streams.add(stream)
        try:
            await self._handle("ModelStreamInfer", context, stream.serve(), _BIDI)
        finally:
            self._streams.discard(stream)

    def end_streams(self) -> None:
        """Read no more requests from any stream; those that were read are answered still."""
        for stream in self._streams:
            stream.end()

    async def _infer_streamed(self, caller: str, request: oip.ModelInferRequest, size: int) -> bytes:
        with self.intake.holding(size):
            return await self._infer(lambda: request, size, wrapped, caller)

    def turned_away(self, status: str) -> None:
        """Count a call that ended with `status` before it came to a method."""
        self._metrics.series("unknown").outcome(status.lower()).inc()

    def _refuse(self, request: oip.ModelInferRequest, size: int) -> None:
        """Count a request that its stream has no room for."""
        try:
            served = self._models.get(request.model_name)
            self._metrics.declined(asked_priority(get_parameters(request.parameters)), "full")
        except TandemError:
            served = None
        self._metrics.inflight.inc()
        self._count(served, "resource_exhausted", 0.0, size, None)

    async def _infer(
        self,
        receive: Callable[[], oip.ModelInferRequest],
        size: int,
        encode: Callable[[oip.ModelInferResponse], bytes],
        caller: str,
        left_s: float | None = None,
    ) -> bytes:
        """Answer and count one request of `size` bytes. Its `caller` gives it `left_s` seconds, None for all
        the time there is; its parameters may give it less."""
        started = time.monotonic()
        outcome, served, answer = "failed", None, None
        self._metrics.inflight.inc()
        try:
            request = receive()
            parameters = get_parameters(request.parameters)
            digest = str(parameters.get("tandem_bundle", ""))
            served = self._models.get(request.model_name, request.model_version, digest)
            deadline = started + time_left(parameters, _FOREVER_S if left_s is None else left_s)
            priority = asked_priority(parameters)
            answer = encode(await self._run(served, request, deadline, started, priority, caller))
            outcome = "ok"
        except TandemError as error:
            outcome = grpc_status(error).lower()
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            seconds = time.monotonic() - started
            # While the answer is on its way: counting takes as long as a good part of the hop.
            asyncio.get_running_loop().call_soon(self._count, served, outcome, seconds, size, answer)
        return answer

    def _count(
        self,
        served: Served | None,
        outcome: str,
        seconds: float,
        size: int,
        answer: bytes | None,
    ) -> None:
        """Count one request, once, under what became of it."""
        series = self._metrics.series("unknown" if served is None else served.name)
        self._metrics.inflight.dec()
        series.outcome(outcome).inc()
        series.seconds.observe(seconds)
        if served is not None:
            series.received.inc(size)
        if answer is not None:
            series.sent.inc(len(answer))
        elif served is not None:
            served.statistics.fail(seconds)

    async def _run(
        self,
        served: Served,
        request: oip.ModelInferRequest,
        deadline: float,
        arrived: float,
        priority: Priority,
        caller: str,
    ) -> oip.ModelInferResponse:
        inputs = from_request(request)
        wanted = {}
        if request.outputs:
            wanted = {name: class_count(name, own) for name, own in get_outputs(request).items()}
            check_outputs(wanted, [spec.name for spec in served.engine.outputs])
        seconds = {}
        if served.decoder is not None:
            served.batcher.admit(inputs, deadline, priority=priority, caller=caller)
            started = time.monotonic()
            inputs = await self._decoders.decode(
                served.decoder, inputs, deadline, priority=priority, caller=caller
            )
            seconds["decode"] = time.monotonic() - started
        handed = time.monotonic()
        batched = await served.batcher.submit(inputs, deadline, priority=priority, caller=caller)
        back = time.monotonic()
        seconds |= {"queue": batched.queue_s, "infer": batched.infer_s}
        answer: dict[str, Parameter] = {"tandem_bundle": served.digest}
        for stage, value in seconds.items():
            answer[f"tandem_{stage}_ms"] = value * 1000
        outputs = select(batched.outputs, wanted, served.labels)
        answer["tandem_total_ms"] = (time.monotonic() - arrived) * 1000
        response = to_response(served.name, served.version, outputs, answer, request.id)
        times = (time.monotonic() - arrived, handed - arrived, time.monotonic() - back)
        asyncio.get_running_loop().call_soon(self._count_stages, served, batched, seconds, times)
        return response

    def _count_stages(
        self, served: Served, batched: Batched, seconds: dict[str, float], times: tuple[float, float, float]
    ) -> None:
        """Count the stages of one answered request; `times`: the seconds in all, before and after the run."""
        series, (total_s, input_s, output_s) = self._metrics.series(served.name), times
        for stage, value in seconds.items():
            series.stage(stage).observe(value)
        rows = len(next(iter(batched.outputs.values())))
        served.answered(rows, total_s, batched.queue_s, input_s, batched.infer_s, output_s)

    async def _handle(self, name: str, context: _Context, work: Awaitable[_T], kind: str = "unary") -> _T:
        """Await `work`: the one place where a call is counted and ended with the status of its error."""
        method = self._metrics.method(kind, SERVICE, name)
        method.started.inc()
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            return await work
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - a bug must cost one call, not the service
            code, text = self._status(error)
            reason = ((REASON_KEY, TOO_LARGE),) if isinstance(error, TooLarge) else ()
            await context.abort(code, text, reason)
        finally:
            method.handled(code.name).inc()
            method.seconds.observe(time.monotonic() - started)

    def _status(self, error: BaseException) -> tuple[grpc.StatusCode, str]:
        """What the caller is told of an error; the one place where it becomes a status. Ours are logged."""
        if not isinstance(error, TandemError):
            _log.error("a call failed unexpectedly", exc_info=error)
            return grpc.StatusCode.INTERNAL, "internal error; the service's log has the details"
        code = grpc.StatusCode[grpc_status(error)]
        if code is grpc.StatusCode.INTERNAL:
            _log.error("a call failed: %s", error)
        return code, shortened(str(error))


async def _ready(value: _T) -> _T:
    return value


async def _told(answer: _M, document: Callable[..., dict[str, Any]], *arguments: str) -> _M:
    """`answer` filled with what the document says: its fields have the same names."""
    return ParseDict(document(*arguments), answer)
