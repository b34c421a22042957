"""The service as its clients see it: a real server, a real client, every call and every status."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from cloud_service.servicer import SERVICE
from inference_core.bundle import load_bundle
from inference_core.catalogue import EXTENSIONS
from inference_core.tensors import from_response, get_parameters, to_request
from protos import open_inference_pb2 as oip
from tests.bundles import (
    SURE,
    SURE_BUT_WRONG,
    UNSURE,
    Color,
    picture,
    pixels,
    write_bundle,
)
from tests.cloud_service.service import Service, failing_bundle, serving

pytestmark = pytest.mark.anyio

RED, BLUE = 0, 2
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("cloud") / "colors")


@pytest.fixture
async def service(bundle: Path) -> AsyncIterator[Service]:
    async with serving(bundle, max_batch_size=4, max_queue=5, max_message_bytes=4096) as started:
        yield started


def request(
    *colors: Color, model: str = "colors", version: str = "", **parameters: Any
) -> oip.ModelInferRequest:
    return to_request(model, version, {"input": pixels(*colors)}, parameters, "id-7")


def images(*encoded: bytes, model: str = "colors.image", version: str = "") -> oip.ModelInferRequest:
    array = np.empty(len(encoded), dtype=object)
    array[:] = encoded
    return to_request(model, version, {"image": array}, {}, "id-8")


def winners(response: oip.ModelInferResponse) -> list[int]:
    return [int(row.argmax()) for row in from_response(response)["logits"]]


@contextlib.contextmanager
def refused(code: grpc.StatusCode, text: str = "") -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert (caught.value.code(), text in (caught.value.details() or "")) == (code, True), caught.value


async def works(service: Service) -> bool:
    """Whether a good call is answered, as it must be after any bad one."""
    return winners(await service.stub.ModelInfer(request(UNSURE))) == [BLUE]


async def test_server_is_live_and_ready(service: Service) -> None:
    assert (await service.stub.ServerLive(oip.ServerLiveRequest())).live
    assert (await service.stub.ServerReady(oip.ServerReadyRequest())).ready


async def test_server_metadata(service: Service) -> None:
    metadata = await service.stub.ServerMetadata(oip.ServerMetadataRequest())
    assert (metadata.name, metadata.version, list(metadata.extensions)) == (
        "tandem-cloud",
        "1.2.3",
        list(EXTENSIONS),
    )


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("colors", "", True),
        ("colors", "1", True),
        ("colors.image", "1", True),
        ("colors.tail.means", "", True),
        ("colors", "2", False),
        ("shapes", "", False),
        ("", "", False),
    ],
)
async def test_model_ready(service: Service, name: str, version: str, ready: bool) -> None:
    answer = await service.stub.ModelReady(oip.ModelReadyRequest(name=name, version=version))
    assert answer.ready == ready


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("colors", ("input", "FP32", [-1, 3, 8, 8])),
        ("colors.image", ("image", "BYTES", [-1])),
        ("colors.tail.pixels", ("features", "UINT8", [-1, 3, 8, 8])),
        ("colors.tail.means", ("features", "UINT8", [-1, 3])),
    ],
)
async def test_model_metadata(service: Service, name: str, given: tuple[str, str, list[int]]) -> None:
    metadata = await service.stub.ModelMetadata(oip.ModelMetadataRequest(name=name))
    assert (metadata.name, list(metadata.versions), metadata.platform) == (name, ["1"], "onnxruntime_onnx")
    (tensor,) = metadata.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == given
    (tensor,) = metadata.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("logits", "FP32", [-1, 3])


async def test_metadata_of_what_is_not_there(service: Service) -> None:
    with refused(Code.NOT_FOUND, "'shapes' is not served here, only colors, colors.image"):
        await service.stub.ModelMetadata(oip.ModelMetadataRequest(name="shapes"))
    with refused(Code.FAILED_PRECONDITION, "version 2 was asked for, 1 is here"):
        await service.stub.ModelMetadata(oip.ModelMetadataRequest(name="colors", version="2"))


async def test_full_model_on_raw_tensors(service: Service) -> None:
    response = await service.stub.ModelInfer(request(SURE, UNSURE, version="1"))
    assert (response.model_name, response.model_version, response.id) == ("colors", "1", "id-7")
    logits = from_response(response)["logits"]
    assert (logits.dtype, logits.shape) == (np.dtype(np.float32), (2, 3))
    assert winners(response) == [RED, BLUE]
    assert logits[0] == pytest.approx([20.0, 0.0, 5.0])


async def test_full_model_on_typed_tensors(service: Service) -> None:
    message = oip.ModelInferRequest(model_name="colors")
    tensor = message.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
    tensor.contents.fp32_contents.extend(pixels(SURE).ravel())
    assert winners(await service.stub.ModelInfer(message)) == [RED]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
async def test_images(service: Service, form: str) -> None:
    message = images(picture(SURE, form), picture(UNSURE, form), picture(SURE_BUT_WRONG, form))
    assert winners(await service.stub.ModelInfer(message)) == [RED, BLUE, BLUE]


async def test_images_as_typed_bytes(service: Service) -> None:
    message = oip.ModelInferRequest(model_name="colors.image")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(picture(SURE))
    assert winners(await service.stub.ModelInfer(message)) == [RED]


@pytest.mark.parametrize("cut", ["pixels", "means"])
async def test_tails_answer_as_the_full_model_does(service: Service, bundle: Path, cut: str) -> None:
    loaded = load_bundle(bundle)
    part = loaded.manifest.cut(cut)
    assert part is not None
    head = loaded.engine(part.head, threads=1, providers=("CPUExecutionProvider",))
    features = head.run({"input": pixels(SURE, UNSURE)})
    response = await service.stub.ModelInfer(to_request(f"colors.tail.{cut}", "1", features, {}, ""))
    full = await service.stub.ModelInfer(request(SURE, UNSURE))
    assert from_response(response)["logits"] == pytest.approx(from_response(full)["logits"], abs=1e-4)


async def test_answer_says_how_long_each_stage_took_and_which_bundle_it_is(
    service: Service, bundle: Path
) -> None:
    answer = get_parameters((await service.stub.ModelInfer(request(SURE))).parameters)
    assert answer.pop("tandem_bundle") == load_bundle(bundle).digest
    assert answer.keys() == {"tandem_queue_ms", "tandem_infer_ms", "tandem_total_ms"}
    assert all(isinstance(value, float) and 0 <= value < 10_000 for value in answer.values())
    answer = get_parameters((await service.stub.ModelInfer(images(picture(SURE)))).parameters)
    stages = {"tandem_decode_ms", "tandem_queue_ms", "tandem_infer_ms", "tandem_total_ms"}
    assert answer.keys() == {"tandem_bundle"} | stages


async def test_caller_with_the_same_bundle_is_answered(service: Service, bundle: Path) -> None:
    digest = load_bundle(bundle).digest
    assert winners(await service.stub.ModelInfer(request(SURE, tandem_bundle=digest))) == [RED]


def typed(datatype: str, shape: Sequence[int], **contents: Any) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="colors")
    tensor = message.inputs.add(name="input", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return message


def raw(datatype: str, shape: Sequence[int], *data: bytes, name: str = "input") -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="colors", raw_input_contents=data)
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def tensor(array: NDArray[Any], name: str = "input", model: str = "colors") -> oip.ModelInferRequest:
    return to_request(model, "", {name: array}, {}, "")


def twice() -> oip.ModelInferRequest:
    message = request(SURE)
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    return message


BAD = {
    "unknown model": (request(SURE, model="shapes"), Code.NOT_FOUND, "'shapes' is not served here"),
    "no model": (request(SURE, model=""), Code.NOT_FOUND, "'' is not served here"),
    "unknown cut": (request(SURE, model="colors.tail.x"), Code.NOT_FOUND, "'colors.tail.x' is not served"),
    "other version": (request(SURE, version="2"), Code.FAILED_PRECONDITION, "version 2 was asked for, 1 is"),
    "other bundle": (
        request(SURE, tandem_bundle="0" * 64),
        Code.FAILED_PRECONDITION,
        "bundle 000000000000 was asked for",
    ),
    "no inputs": (oip.ModelInferRequest(model_name="colors"), Code.INVALID_ARGUMENT, "'input' is missing"),
    "unknown input": (tensor(pixels(SURE), "x"), Code.INVALID_ARGUMENT, "unknown input 'x'"),
    "input twice": (twice(), Code.INVALID_ARGUMENT, "'input' is given twice"),
    "dtype": (tensor(pixels(SURE).astype("f8")), Code.INVALID_ARGUMENT, "datatype must be FP32"),
    "unknown dtype": (raw("FP8", [1], b"1"), Code.INVALID_ARGUMENT, "'FP8' is not one of BOOL"),
    "rank": (tensor(pixels(SURE)[0]), Code.INVALID_ARGUMENT, "shape must be [-1, 3, 8, 8], got [3, 8, 8]"),
    "size": (tensor(np.zeros((1, 3, 9, 8), "f4")), Code.INVALID_ARGUMENT, "got [1, 3, 9, 8]"),
    "no samples": (tensor(pixels()), Code.INVALID_ARGUMENT, "1 or more samples"),
    "raw too short": (raw("FP32", [1, 3, 8, 8], b"123"), Code.INVALID_ARGUMENT, "is 768 bytes, got 3"),
    "raw count": (raw("FP32", [1, 3, 8, 8], b"", b""), Code.INVALID_ARGUMENT, "1 inputs but 2 raw"),
    "negative shape": (raw("FP32", [-1, 3, 8, 8], b""), Code.INVALID_ARGUMENT, "whole numbers >= 0"),
    "giant shape": (raw("FP32", [1 << 40] * 3, b""), Code.INVALID_ARGUMENT, "elements"),
    "typed too short": (
        typed("FP32", [1, 3, 8, 8], fp32_contents=[1.0]),
        Code.INVALID_ARGUMENT,
        "does not fit the 1 values in fp32_contents",
    ),
    "typed in the wrong field": (
        typed("FP32", [1], fp64_contents=[1.0]),
        Code.INVALID_ARGUMENT,
        "does not fit the 0 values",
    ),
    "typed half": (typed("FP16", [1]), Code.INVALID_ARGUMENT, "FP16 must be sent as raw contents"),
    "NaN": (tensor(np.full((1, 3, 8, 8), np.nan, "f4")), Code.INVALID_ARGUMENT, "NaN or an infinity"),
    "infinity": (tensor(np.full((1, 3, 8, 8), np.inf, "f4")), Code.INVALID_ARGUMENT, "NaN or an infinity"),
    "too many samples": (
        request(*[SURE] * 5),
        Code.INVALID_ARGUMENT,
        "5 samples in one request, the limit is 4",
    ),
    "tail with pixels": (
        tensor(pixels(SURE), "features", "colors.tail.means"),
        Code.INVALID_ARGUMENT,
        "datatype must be UINT8",
    ),
    "image to the full model": (
        images(picture(SURE), model="colors"),
        Code.INVALID_ARGUMENT,
        "unknown input",
    ),
    "tensor to the image model": (
        request(SURE, model="colors.image"),
        Code.INVALID_ARGUMENT,
        "takes one input, 'image': BYTES of shape [-1]",
    ),
    "image tensor of numbers": (
        tensor(pixels(SURE), "image", "colors.image"),
        Code.INVALID_ARGUMENT,
        "takes one input, 'image'",
    ),
    "no images": (images(), Code.INVALID_ARGUMENT, "0 images in one request, the limits are 1 and 4"),
    "too many images": (images(*[picture(SURE)] * 5), Code.INVALID_ARGUMENT, "the limits are 1 and 4"),
    "not an image": (images(b"hello"), Code.INVALID_ARGUMENT, "not one of JPEG, PNG, WEBP"),
    "empty image": (images(b""), Code.INVALID_ARGUMENT, "empty"),
    "truncated image": (images(picture(SURE)[:-30]), Code.INVALID_ARGUMENT, "truncated or damaged"),
    "one bad image of two": (images(picture(SURE), b"x"), Code.INVALID_ARGUMENT, "not one of JPEG"),
    "message over the limit": (request(*[SURE] * 96), Code.RESOURCE_EXHAUSTED, "larger than max"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_call_gets_its_status_and_harms_no_one(service: Service, case: str) -> None:
    message, code, text = BAD[case]
    with refused(code, text):
        await service.stub.ModelInfer(message)
    assert await works(service)
    await service.idle()
    # gRPC itself refuses what is over the limit, before anyone could count it
    seen = 1 if case == "message over the limit" else 2
    assert service.total("tandem_cloud_requests_total") == seen
    assert service.total("grpc_server_handled_total") == seen
    assert service.value("tandem_cloud_requests_total", model="colors", outcome="ok") == 1
    assert service.total("tandem_cloud_inflight_requests") == 0


async def test_image_over_the_pixel_limit(bundle: Path) -> None:
    async with serving(bundle, max_pixels=100) as service:
        with pytest.raises(grpc.aio.AioRpcError, match="20x20 is 400 pixels, the limit is 100") as caught:
            await service.stub.ModelInfer(images(picture(SURE, size=(20, 20))))
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        # Which is not the same as being busy.
        assert dict(caught.value.trailing_metadata() or ())["tandem-reason"] == "too_large"
        assert winners(await service.stub.ModelInfer(images(picture(SURE)))) == [RED]


async def test_calls_are_counted_once_under_what_became_of_them(service: Service) -> None:
    for message in (request(SURE), request(SURE, UNSURE), images(picture(SURE))):
        await service.stub.ModelInfer(message)
    with refused(Code.INVALID_ARGUMENT):
        await service.stub.ModelInfer(tensor(pixels()))
    with refused(Code.NOT_FOUND):
        await service.stub.ModelInfer(request(SURE, model="shapes"))
    await service.stub.ServerLive(oip.ServerLiveRequest())
    await service.idle()
    count = "tandem_cloud_requests_total"
    assert service.value(count, model="colors", outcome="ok") == 2
    assert service.value(count, model="colors.image", outcome="ok") == 1
    assert service.value(count, model="colors", outcome="invalid_argument") == 1
    assert service.value(count, model="unknown", outcome="not_found") == 1
    assert service.total(count) == 5
    assert service.total("tandem_cloud_request_duration_seconds_count") == 5
    method = {"grpc_type": "unary", "grpc_service": SERVICE}
    assert service.value("grpc_server_started_total", **method, grpc_method="ModelInfer") == 5
    for code, calls in (("OK", 3), ("INVALID_ARGUMENT", 1), ("NOT_FOUND", 1)):
        labels = {**method, "grpc_method": "ModelInfer", "grpc_code": code}
        assert service.value("grpc_server_handled_total", **labels) == calls
    assert service.value("grpc_server_handling_seconds_count", **method, grpc_method="ServerLive") == 1


async def test_runs_and_bytes_are_counted(service: Service) -> None:
    message = request(SURE, UNSURE)
    response = await service.stub.ModelInfer(message)
    assert service.value("tandem_batch_size_sum", model="colors") == 2
    assert service.value("tandem_batch_size_count", model="colors") == 1
    sizes = {"received": message.ByteSize(), "sent": response.ByteSize()}
    for direction, size in sizes.items():
        assert service.value("tandem_cloud_bytes_total", model="colors", direction=direction) == size
    for stage in ("queue", "infer"):
        labels = {"model": "colors", "stage": stage}
        assert service.value("tandem_cloud_stage_duration_seconds_count", **labels) == 1


async def test_concurrent_calls_share_runs_and_get_their_own_answers(service: Service) -> None:
    colors = [SURE, UNSURE, SURE, UNSURE]
    with service.runs_held():
        first = service.stub.ModelInfer(request(SURE))
        await service.began("colors")
        calls = [service.stub.ModelInfer(request(color)) for color in colors]
        await service.queued("colors", 4)
    assert [winners(await call) for call in calls] == [[RED], [BLUE], [RED], [BLUE]]
    await first
    assert service.value("tandem_batch_size_sum", model="colors") == 5
    assert service.value("tandem_batch_size_count", model="colors") == 2


async def test_images_and_tensors_share_a_queue(service: Service) -> None:
    with service.runs_held():
        first = service.stub.ModelInfer(request(SURE))
        await service.began("colors")
        calls = [service.stub.ModelInfer(request(SURE)), service.stub.ModelInfer(images(picture(UNSURE)))]
        await service.queued("colors", 2)
    assert [winners(await call) for call in (first, *calls)] == [[RED], [RED], [BLUE]]
    assert service.value("tandem_batch_size_count", model="colors") == 2


async def test_full_queue_is_resource_exhausted(service: Service) -> None:
    with service.runs_held():
        first = service.stub.ModelInfer(request(SURE))
        await service.began("colors")
        waiting = service.stub.ModelInfer(request(SURE, SURE, SURE, SURE))
        await service.queued("colors", 4)
        with refused(Code.RESOURCE_EXHAUSTED, "4 samples are waiting, the limit is 5"):
            await service.stub.ModelInfer(request(SURE, SURE))
    assert winners(await first) == [RED]
    assert winners(await waiting) == [RED] * 4
    assert await works(service)


async def test_deadline_ends_a_call_and_its_sample_is_not_run(service: Service) -> None:
    with service.runs_held():
        first = service.stub.ModelInfer(request(SURE))
        await service.began("colors")
        # long enough to be queued first, as the next line sees
        late = service.stub.ModelInfer(request(UNSURE), timeout=0.5)
        await service.queued("colors", 1)
        with refused(Code.DEADLINE_EXCEEDED):
            await late
        await service.queued("colors", 0)
    assert winners(await first) == [RED]
    assert await works(service)
    await service.idle()
    assert service.value("tandem_batch_size_sum", model="colors") == 2
    assert service.value("tandem_cloud_requests_total", model="colors", outcome="ok") == 2
    assert service.total("tandem_cloud_requests_total") == 3


async def test_caller_that_hangs_up_is_not_run(service: Service) -> None:
    with service.runs_held():
        first = service.stub.ModelInfer(request(SURE))
        await service.began("colors")
        gone = service.stub.ModelInfer(request(UNSURE))
        await service.queued("colors", 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await service.queued("colors", 0)
    assert winners(await first) == [RED]
    await service.idle()
    assert service.value("tandem_cloud_requests_total", model="colors", outcome="cancelled") == 1


async def test_loading_service_says_so(bundle: Path) -> None:
    async with serving(bundle, loaded=False) as service:
        assert (await service.stub.ServerLive(oip.ServerLiveRequest())).live
        assert not (await service.stub.ServerReady(oip.ServerReadyRequest())).ready
        assert not (await service.stub.ModelReady(oip.ModelReadyRequest(name="colors"))).ready
        with refused(Code.UNAVAILABLE, "still loading"):
            await service.stub.ModelInfer(request(SURE))
        with refused(Code.UNAVAILABLE, "still loading"):
            await service.stub.ModelMetadata(oip.ModelMetadataRequest(name="colors"))
        await service.load()
        assert await works(service)


async def test_health_follows_the_service(bundle: Path) -> None:
    kinds = health_pb2.HealthCheckResponse
    async with serving(bundle, loaded=False) as service:
        stub: Any = health_pb2_grpc.HealthStub(service.channel)
        for name in ("", SERVICE):
            check = health_pb2.HealthCheckRequest(service=name)
            await service.server.set_serving(False)
            assert (await stub.Check(check)).status == kinds.NOT_SERVING
            await service.server.set_serving(True)
            assert (await stub.Check(check)).status == kinds.SERVING
        with refused(Code.NOT_FOUND):
            await stub.Check(health_pb2.HealthCheckRequest(service="elsewhere"))


async def test_stop_finishes_what_is_in_flight(service: Service) -> None:
    with service.runs_held():
        first = service.stub.ModelInfer(request(SURE))
        await service.began("colors")
        waiting = service.stub.ModelInfer(request(UNSURE))
        await service.queued("colors", 1)
        stopping = asyncio.create_task(service.server.stop(10))
    await stopping
    assert [winners(await call) for call in (first, waiting)] == [[RED], [BLUE]]


async def test_calls_after_close_are_refused(service: Service) -> None:
    await service.models.close()
    with refused(Code.UNAVAILABLE, "stopping"):
        await service.stub.ModelInfer(request(SURE))


async def test_run_that_fails_is_internal_and_the_next_works(tmp_path: Path) -> None:
    async with serving(failing_bundle(tmp_path / "fails")) as service:
        with refused(Code.INTERNAL, "full.onnx: the run failed"):
            await service.stub.ModelInfer(request(SURE))
        assert await works(service)
        await service.idle()
        assert service.value("tandem_cloud_requests_total", model="colors", outcome="internal") == 1


async def test_bug_costs_one_call_and_tells_nothing(bundle: Path) -> None:
    async with serving(bundle) as service:
        service.runs.shutdown()  # nobody does that while calls come in
        with refused(Code.INTERNAL, "internal error; the service's log has the details"):
            await service.stub.ModelInfer(request(SURE))
        assert (await service.stub.ServerLive(oip.ServerLiveRequest())).live
        await service.idle()
        assert service.value("tandem_cloud_requests_total", model="colors", outcome="failed") == 1


async def test_port_that_is_taken(bundle: Path, service: Service) -> None:
    with pytest.raises(RuntimeError, match="bind"):
        async with serving(bundle, host="127.0.0.1", grpc_port=service.server.port) as second:
            pytest.fail(f"started on {second.server.port}")  # pragma: no cover


async def test_configuration_statistics_and_index(service: Service) -> None:
    for version in ("", "1"):
        config = (
            await service.stub.ModelConfig(oip.ModelConfigRequest(name="colors", version=version))
        ).config
        assert (config.name, config.max_batch_size) == ("colors", 4)
        assert (config.input[0].data_type, list(config.input[0].dims)) == (oip.TYPE_FP32, [3, 8, 8])
        assert config.HasField("dynamic_batching")
    index = (await service.stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))).models
    assert {entry.state for entry in index} == {"READY"}
    everything = (await service.stub.ModelStatistics(oip.ModelStatisticsRequest())).model_stats
    assert [stats.name for stats in everything] == [entry.name for entry in index]
    with refused(Code.NOT_FOUND, "'shapes' is not served here"):
        await service.stub.ModelConfig(oip.ModelConfigRequest(name="shapes"))
    with refused(Code.FAILED_PRECONDITION, "version 2 was asked for"):
        await service.stub.ModelStatistics(oip.ModelStatisticsRequest(name="colors", version="2"))


async def test_statistics_count_each_request_once(service: Service) -> None:
    await service.stub.ModelInfer(request(SURE, UNSURE))
    await service.stub.ModelInfer(images(picture(SURE)))
    with refused(Code.INVALID_ARGUMENT):
        await service.stub.ModelInfer(tensor(np.zeros((1, 2), np.float32)))
    (full,) = (await service.stub.ModelStatistics(oip.ModelStatisticsRequest(name="colors"))).model_stats
    (image,) = (
        await service.stub.ModelStatistics(oip.ModelStatisticsRequest(name="colors.image"))
    ).model_stats
    assert (full.inference_count, full.execution_count) == (2, 2)  # the image ran on it as well
    assert (full.inference_stats.success.count, full.inference_stats.fail.count) == (1, 1)
    assert full.inference_stats.success.ns > full.inference_stats.compute_infer.ns > 0
    assert [run.batch_size for run in full.batch_stats] == [1, 2]
    assert (image.inference_count, image.execution_count) == (1, 1)
    assert image.inference_stats.compute_input.ns > 0


async def test_outputs_by_name_and_as_their_best_classes(service: Service) -> None:
    message = request(SURE, UNSURE)
    output = message.outputs.add(name="logits")
    assert winners(await service.stub.ModelInfer(message)) == [RED, BLUE]
    output.parameters["classification"].int64_param = 1
    best = from_response(await service.stub.ModelInfer(message))["logits"]
    assert [text.split(b":")[1:] for text in best.ravel()] == [[b"0", b"red"], [b"2", b"blue"]]
    output.parameters["classification"].int64_param = 0
    with refused(Code.INVALID_ARGUMENT, "parameter classification must be a whole number >= 1, got 0"):
        await service.stub.ModelInfer(message)
    output.parameters.clear()
    output.parameters["shared_memory_region"].string_param = "mine"
    with refused(Code.INVALID_ARGUMENT, "shared memory is not served here"):
        await service.stub.ModelInfer(message)
    output.name = "else"
    output.parameters.clear()
    with refused(Code.INVALID_ARGUMENT, "output 'else': the model has 'logits' only"):
        await service.stub.ModelInfer(message)
