"""The Open Inference Protocol over gRPC: a real server, a real client, every call and every status."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from edge_node.grpc_api import SERVICE, GrpcServer, Servicer
from inference_core.body import Intake
from inference_core.catalogue import EXTENSIONS
from inference_core.errors import CloudUnreachable
from inference_core.tensors import from_response, get_parameters, to_request
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import SURE, UNSURE, Color, pixels
from tests.edge_node.node import CloudSimulator, Node, failing_bundle, node

pytestmark = pytest.mark.anyio

RED, BLUE = 0, 2
Code = grpc.StatusCode


class Service:
    """The gRPC side of a node, and the stub of a client of it."""

    def __init__(self, edge: Node) -> None:
        self.edge = edge
        servicer = Servicer(edge.dataplane, edge.metrics, Intake(16 << 20, 64 << 20))
        self.server = GrpcServer(servicer, edge.settings)

    async def start(self) -> None:
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.stub = oip_grpc.GRPCInferenceServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(0)

    async def idle(self) -> None:
        """Turn the loop until every call that began has been counted as ended."""
        started, handled = (f"grpc_server_{what}_total" for what in ("started", "handled"))
        async with asyncio.timeout(30):
            while sum(self.edge.series(started).values()) != sum(self.edge.series(handled).values()):  # noqa: ASYNC110
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(edge: Node) -> AsyncIterator[Service]:
    service = Service(edge)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@pytest.fixture
async def service(edge: Node) -> AsyncIterator[Service]:
    async with serving(edge) as made:
        yield made


def request(
    *colors: Color, model: str = "colors", version: str = "", **parameters: Any
) -> oip.ModelInferRequest:
    return to_request(model, version, {"input": pixels(*colors)}, parameters, "id-7")


def tensor(array: NDArray[Any], name: str = "input") -> oip.ModelInferRequest:
    return to_request("colors", "", {name: array}, {}, "")


def winners(response: oip.ModelInferResponse) -> list[int]:
    return [int(row.argmax()) for row in from_response(response)["logits"]]


@contextlib.contextmanager
def refused(code: grpc.StatusCode, text: str = "") -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert (caught.value.code(), text in (caught.value.details() or "")) == (code, True), caught.value


async def test_server_is_live_ready_and_described(service: Service) -> None:
    assert (await service.stub.ServerLive(oip.ServerLiveRequest())).live
    assert (await service.stub.ServerReady(oip.ServerReadyRequest())).ready
    metadata = await service.stub.ServerMetadata(oip.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("tandem-edge", "1.2.3")


async def test_server_has_one_name_over_both_transports(service: Service) -> None:
    metadata = await service.stub.ServerMetadata(oip.ServerMetadataRequest())
    assert list(metadata.extensions) == list(EXTENSIONS)


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("colors", "", True), ("colors", "1", True), ("colors", "2", False), ("shapes", "", False)],
)
async def test_model_ready(service: Service, name: str, version: str, ready: bool) -> None:
    answer = await service.stub.ModelReady(oip.ModelReadyRequest(name=name, version=version))
    assert answer.ready == ready


async def test_model_metadata(service: Service) -> None:
    metadata = await service.stub.ModelMetadata(oip.ModelMetadataRequest(name="colors", version="1"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == (
        "colors",
        ["1"],
        "onnxruntime_onnx",
    )
    (given,), (made,) = metadata.inputs, metadata.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("input", "FP32", [-1, 3, 8, 8])
    assert (made.name, made.datatype, list(made.shape)) == ("logits", "FP32", [-1, 3])


async def test_raw_tensors(service: Service) -> None:
    response = await service.stub.ModelInfer(request(SURE))
    assert (response.model_name, response.model_version, response.id) == ("colors", "1", "id-7")
    assert winners(response) == [RED]
    told = get_parameters(response.parameters)
    assert (told["tandem_source"], told["tandem_reason"], told["tandem_degraded"]) == (
        *("edge", "confident", False),
    )


async def test_typed_tensors(service: Service) -> None:
    message = oip.ModelInferRequest(model_name="colors")
    given = message.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
    given.contents.fp32_contents.extend(pixels(UNSURE).ravel())
    message.outputs.add(name="logits")
    assert winners(await service.stub.ModelInfer(message)) == [BLUE]


async def test_samples_of_a_batch_are_decided_each_for_itself(service: Service) -> None:
    response = await service.stub.ModelInfer(request(SURE, UNSURE))
    assert winners(response) == [RED, BLUE]
    assert get_parameters(response.parameters)["tandem_source"] == "edge,cloud"


async def test_parameters(service: Service, cloud: CloudSimulator) -> None:
    response = await service.stub.ModelInfer(request(SURE, tandem_mode="split", tandem_cut="means", other=1))
    assert get_parameters(response.parameters)["tandem_reason"] == "mode"
    assert cloud.asked[0].model == "colors.tail.means"
    response = await service.stub.ModelInfer(request(UNSURE, tandem_threshold=0.1, tandem_deadline_ms=9000))
    assert get_parameters(response.parameters)["tandem_threshold"] == 0.1


async def test_answer_while_the_cloud_is_away(service: Service, cloud: CloudSimulator) -> None:
    cloud.absent = CloudUnreachable("gone")
    response = await service.stub.ModelInfer(request(UNSURE))
    assert winners(response) == [RED]
    told = get_parameters(response.parameters)
    assert (told["tandem_source"], told["tandem_degraded"]) == ("edge_fallback", True)


def raw(datatype: str, shape: Sequence[int], *data: bytes) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="colors", raw_input_contents=data)
    message.inputs.add(name="input", datatype=datatype, shape=shape)
    return message


def asking_for(output: str) -> oip.ModelInferRequest:
    message = request(SURE)
    message.outputs.add(name=output)
    return message


BAD = {
    "unknown model": (request(SURE, model="shapes"), Code.NOT_FOUND, "'shapes' is not served here"),
    "other version": (request(SURE, version="2"), Code.NOT_FOUND, "version: '2' of model 'colors'"),
    "no inputs": (oip.ModelInferRequest(model_name="colors"), Code.INVALID_ARGUMENT, "'input' is missing"),
    "unknown input": (tensor(pixels(SURE), "x"), Code.INVALID_ARGUMENT, "unknown input 'x'"),
    "unknown output": (asking_for("x"), Code.INVALID_ARGUMENT, "output 'x': the model has 'logits' only"),
    "dtype": (tensor(pixels(SURE).astype("f8")), Code.INVALID_ARGUMENT, "datatype must be FP32"),
    "unknown dtype": (raw("FP8", [1], b"1"), Code.INVALID_ARGUMENT, "'FP8' is not one of BOOL"),
    "shape": (tensor(pixels(SURE)[0]), Code.INVALID_ARGUMENT, "shape must be [-1, 3, 8, 8], got [3, 8, 8]"),
    "raw too short": (raw("FP32", [1, 3, 8, 8], b"123"), Code.INVALID_ARGUMENT, "is 768 bytes, got 3"),
    "raw count": (raw("FP32", [1, 3, 8, 8], b"", b""), Code.INVALID_ARGUMENT, "1 inputs but 2 raw"),
    "giant shape": (raw("FP32", [1 << 40] * 3, b""), Code.INVALID_ARGUMENT, "elements"),
    "no samples": (
        tensor(pixels()),
        Code.INVALID_ARGUMENT,
        "0 samples in one request, the limits are 1 and 4",
    ),
    "too many samples": (
        request(*[SURE] * 5),
        Code.INVALID_ARGUMENT,
        "5 samples in one request, the limits are 1 and 4",
    ),
    "NaN": (tensor(np.full((1, 3, 8, 8), np.nan, "f4")), Code.INVALID_ARGUMENT, "NaN or an infinity"),
    "unknown mode": (request(SURE, tandem_mode="x"), Code.INVALID_ARGUMENT, "parameter tandem_mode: Input"),
    "mode and cut": (
        request(SURE, tandem_mode="auto", tandem_cut="means"),
        Code.INVALID_ARGUMENT,
        "only mode 'split' takes a cut",
    ),
    "unknown cut": (
        request(SURE, tandem_mode="split", tandem_cut="x"),
        Code.INVALID_ARGUMENT,
        "cut: 'x' is not one of pixels, means",
    ),
    "deadline": (request(SURE, tandem_deadline_ms=-1), Code.INVALID_ARGUMENT, "tandem_deadline_ms: Input"),
    "boolean": (
        request(SURE, tandem_threshold=True),
        Code.INVALID_ARGUMENT,
        "must not be a boolean, got True",
    ),
    "threshold": (request(SURE, tandem_threshold=1.5), Code.INVALID_ARGUMENT, "tandem_threshold: Input"),
    "threshold NaN": (
        request(SURE, tandem_threshold=float("nan")),
        Code.INVALID_ARGUMENT,
        "tandem_threshold",
    ),
    "unknown parameter": (
        request(SURE, tandem_treshold=1),
        Code.INVALID_ARGUMENT,
        "tandem_treshold: Extra inputs are not permitted",
    ),
    "over the limit": (request(*[SURE] * 8), Code.RESOURCE_EXHAUSTED, "larger than max"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_call_gets_its_status_is_counted_once_and_harms_no_one(
    colors: Path, cloud: CloudSimulator, case: str
) -> None:
    message, code, text = BAD[case]
    with node(colors, cloud=cloud, max_rows=4, max_body_bytes=5000) as edge:
        async with serving(edge) as service:
            with refused(code, text):
                await service.stub.ModelInfer(message)
            assert winners(await service.stub.ModelInfer(request(UNSURE))) == [BLUE]
            await service.idle()
        # gRPC itself refuses what is over the limit, before anyone could count it
        seen = {} if case == "over the limit" else {("grpc", code.name): 1.0}
        assert edge.series("tandem_refused_requests_total") == seen
        assert edge.series("tandem_requests_total") == {("colors", "low_confidence", "cloud"): 1}
        handled = edge.series("grpc_server_handled_total")
        assert handled.pop(("OK", "ModelInfer", SERVICE, "unary")) == 1
        assert list(handled.values()) == list(seen.values())


async def test_metadata_of_what_is_not_there(service: Service) -> None:
    for name, version in (("shapes", ""), ("colors", "2")):
        with refused(Code.NOT_FOUND, "is not served here"):
            await service.stub.ModelMetadata(oip.ModelMetadataRequest(name=name, version=version))


async def test_busy_node(colors: Path, cloud: CloudSimulator) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    with node(colors, cloud=cloud, max_inflight=1) as edge:
        async with serving(edge) as service:
            first = service.stub.ModelInfer(request(UNSURE, tandem_deadline_ms=500))
            waiting = asyncio.ensure_future(first)
            await cloud.arrived.wait()
            with refused(
                Code.RESOURCE_EXHAUSTED, "1 samples are being answered and 1 more asked for, the limit is 1"
            ):
                await service.stub.ModelInfer(request(SURE))
            assert winners(await waiting) == [RED]
            assert winners(await service.stub.ModelInfer(request(SURE))) == [RED]


async def test_caller_that_hangs_up(edge: Node, service: Service, cloud: CloudSimulator) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    call = service.stub.ModelInfer(request(UNSURE))
    waiting = asyncio.ensure_future(call)
    await cloud.arrived.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await service.idle()
    assert edge.series("grpc_server_handled_total") == {("CANCELLED", "ModelInfer", SERVICE, "unary"): 1}
    assert edge.series("tandem_requests_total") == {}
    assert edge.series("tandem_refused_requests_total") == {}
    assert edge.value("tandem_inflight_requests") == 0


async def test_bug_costs_one_call_and_tells_nothing(
    edge: Node, service: Service, cloud: CloudSimulator
) -> None:
    cloud.failure = RuntimeError("a bug, with a secret in its text")
    with refused(Code.INTERNAL, "internal error; the service's log has the details"):
        await service.stub.ModelInfer(request(UNSURE))
    assert winners(await service.stub.ModelInfer(request(SURE))) == [RED]
    await service.idle()
    assert edge.series("tandem_refused_requests_total") == {("grpc", "INTERNAL"): 1}


async def test_model_that_fails_is_internal_and_the_next_call_works(tmp_path: Path) -> None:
    with node(failing_bundle(tmp_path / "fails")) as edge:
        async with serving(edge) as service:
            with refused(Code.INTERNAL, "the model failed; the service's log has the details"):
                await service.stub.ModelInfer(request(SURE))
            assert winners(await service.stub.ModelInfer(request(UNSURE))) == [RED]


async def test_loading_node_is_there_but_not_ready(colors: Path) -> None:
    with node(colors, loaded=False) as edge:
        async with serving(edge) as service:
            assert (await service.stub.ServerLive(oip.ServerLiveRequest())).live
            assert not (await service.stub.ServerReady(oip.ServerReadyRequest())).ready
            assert not (await service.stub.ModelReady(oip.ModelReadyRequest(name="colors"))).ready
            with refused(Code.UNAVAILABLE, "still loading"):
                await service.stub.ModelInfer(request(SURE))
            edge.load()
            assert winners(await service.stub.ModelInfer(request(SURE))) == [RED]


async def test_health_follows_the_node(service: Service) -> None:
    kinds = health_pb2.HealthCheckResponse
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", SERVICE):
        check = health_pb2.HealthCheckRequest(service=name)
        assert (await stub.Check(check)).status == kinds.NOT_SERVING
        await service.server.set_serving(True)
        assert (await stub.Check(check)).status == kinds.SERVING
        await service.server.set_serving(False)
        assert (await stub.Check(check)).status == kinds.NOT_SERVING


async def test_port_that_is_taken(colors: Path, service: Service) -> None:
    with node(colors, grpc_port=service.server.port, loaded=False) as second:
        servicer = Servicer(second.dataplane, second.metrics, Intake(1024, 1024))
        server = GrpcServer(servicer, second.settings)
        with pytest.raises(RuntimeError, match="bind"):
            await server.start()
        await server.stop(0)


async def test_configuration_statistics_and_index(service: Service) -> None:
    await service.stub.ModelInfer(request(SURE, SURE))
    for version in ("", "1"):
        config = (
            await service.stub.ModelConfig(oip.ModelConfigRequest(name="colors", version=version))
        ).config
        assert (config.name, config.backend, config.max_batch_size) == ("colors", "onnxruntime", 64)
        assert (config.input[0].data_type, list(config.input[0].dims)) == (oip.TYPE_FP32, [3, 8, 8])
    for asked in (oip.ModelStatisticsRequest(), oip.ModelStatisticsRequest(name="colors", version="1")):
        (counted,) = (await service.stub.ModelStatistics(asked)).model_stats
        assert (counted.name, counted.version, counted.inference_count) == ("colors", "1", 2)
        assert counted.inference_stats.success.count == 1
    (entry,) = (await service.stub.RepositoryIndex(oip.RepositoryIndexRequest())).models
    assert (entry.name, entry.version, entry.state) == ("colors", "1", "READY")
    with refused(Code.NOT_FOUND, "'shapes' is not served here"):
        await service.stub.ModelConfig(oip.ModelConfigRequest(name="shapes"))
    with refused(Code.NOT_FOUND, "'shapes' is not served here"):
        await service.stub.ModelStatistics(oip.ModelStatisticsRequest(name="shapes"))


async def test_best_classes(service: Service) -> None:
    message = request(SURE, UNSURE)
    message.outputs.add(name="logits").parameters["classification"].int64_param = 1
    response = await service.stub.ModelInfer(message)
    assert [text.split(b":")[1:] for text in from_response(response)["logits"].ravel()] == [
        [b"0", b"red"],
        [b"2", b"blue"],
    ]


def numbered(color: Color, number: int, **parameters: Any) -> oip.ModelInferRequest:
    message = request(color, **parameters)
    message.id = str(number)
    return message


async def test_stream_answers_each_request_and_an_error_does_not_end_it(edge: Node, service: Service) -> None:
    stream = service.stub.ModelStreamInfer()
    good = [numbered((SURE, UNSURE)[at % 2], at) for at in range(200)]
    bad = [numbered(SURE, 200, tandem_mode="nonsense"), request(SURE, model="shapes")]
    for message in (*good[:100], *bad, *good[100:]):
        await stream.write(message)
    await stream.done_writing()
    answers = [answer async for answer in stream]
    right = {int(a.infer_response.id): winners(a.infer_response) for a in answers if not a.error_message}
    assert right == {at: [(RED, BLUE)[at % 2]] for at in range(200)}
    failed = {answer.infer_response.id: answer for answer in answers if answer.error_message}
    assert failed.keys() == {"200", "id-7"}
    assert "parameter tandem_mode" in failed["200"].error_message
    assert "'shapes' is not served here" in failed["id-7"].error_message
    told = get_parameters(failed["id-7"].infer_response.parameters)
    assert told == {"tandem_status": "NOT_FOUND"}
    assert await stream.code() == Code.OK
    await service.idle()
    assert edge.series("grpc_server_handled_total") == {("OK", "ModelStreamInfer", SERVICE, "bidi_stream"): 1}
    assert edge.series("tandem_refused_requests_total") == {
        ("grpc", "INVALID_ARGUMENT"): 1,
        ("grpc", "NOT_FOUND"): 1,
    }
    assert sum(edge.series("tandem_requests_total").values()) == 200


async def test_answers_on_a_stream_do_not_wait_for_those_before_them(
    service: Service, cloud: CloudSimulator
) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    stream = service.stub.ModelStreamInfer()
    await stream.write(numbered(UNSURE, 1, tandem_deadline_ms=500))
    await cloud.arrived.wait()
    await stream.write(numbered(SURE, 2))
    assert (await stream.read()).infer_response.id == "2"
    late = (await stream.read()).infer_response
    assert (late.id, get_parameters(late.parameters)["tandem_reason"]) == ("1", "deadline")
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_stopping_ends_streams_once_what_they_asked_is_answered(
    edge: Node, service: Service, cloud: CloudSimulator
) -> None:
    cloud.gate = threading.Event()
    idle, busy = service.stub.ModelStreamInfer(), service.stub.ModelStreamInfer()
    await idle.write(numbered(SURE, 1))
    assert (await idle.read()).infer_response.id == "1"
    await busy.write(numbered(UNSURE, 2))
    assert await asyncio.to_thread(cloud.entered.wait, 30)
    stopping = asyncio.create_task(service.server.stop(60))
    assert await idle.read() is grpc.aio.EOF
    assert not stopping.done()
    cloud.gate.set()
    assert winners((await busy.read()).infer_response) == [BLUE]
    assert await busy.read() is grpc.aio.EOF
    await asyncio.wait_for(stopping, 30)
    assert edge.series("grpc_server_handled_total") == {("OK", "ModelStreamInfer", SERVICE, "bidi_stream"): 2}


async def test_bug_on_a_stream_costs_one_answer_and_tells_nothing(
    service: Service, cloud: CloudSimulator
) -> None:
    cloud.failure = RuntimeError("a bug, with a secret in its text")
    stream = service.stub.ModelStreamInfer()
    for number, color in enumerate((UNSURE, SURE)):
        await stream.write(numbered(color, number))
    await stream.done_writing()
    answers = {answer.infer_response.id: answer.error_message async for answer in stream}
    assert answers == {"0": "internal error; the service's log has the details", "1": ""}


async def test_client_that_leaves_its_stream(
    edge: Node, service: Service, cloud: CloudSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    stream = service.stub.ModelStreamInfer()
    for number in range(100):  # more than are answered at a time
        await stream.write(numbered(UNSURE, number))
    await cloud.arrived.wait()
    stream.cancel()
    await service.idle()
    assert edge.series("grpc_server_handled_total") == {
        ("CANCELLED", "ModelStreamInfer", SERVICE, "bidi_stream"): 1
    }
    assert edge.value("tandem_inflight_requests") == 0
    assert caplog.text == ""
    cloud.silent = False
    assert winners(await service.stub.ModelInfer(request(SURE))) == [RED]
