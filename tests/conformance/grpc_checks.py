"""Every call of `tritonclient.grpc` that a service without shared memory and repository control can answer,
its streams among them, and that the others are refused. `python -m tests.conformance.grpc_checks TARGET`."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.auth import BasicAuth

from tests.conformance.check import (
    BLUE,
    LABELS,
    RED,
    SURE,
    UNSURE,
    Target,
    objects,
    pixels,
    refused,
    run,
    winners,
)

PATIENCE_S = 10.0
INVALID, MISSING = "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"
OTHER_VERSION = (MISSING, "StatusCode.FAILED_PRECONDITION")
NOT_HERE = "StatusCode.UNIMPLEMENTED"
LATE = "StatusCode.DEADLINE_EXCEEDED"


def client(target: Target) -> Any:
    return triton.InferenceServerClient(target.grpc)


def tensor(array: NDArray[Any], name: str = "input", datatype: str = "FP32") -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def check_messages_have_the_numbers_of_the_client(target: Target) -> None:
    ours = descriptor_pb2.FileDescriptorProto.FromString(target.proto)
    theirs: dict[str, Any] = {}
    for module in (service_pb2, model_config_pb2):
        for name, message in module.DESCRIPTOR.message_types_by_name.items():
            theirs[name] = message
            theirs |= {f"{name}.{inner.name}": inner for inner in message.nested_types}
    fields = 0
    for message in ours.message_type:
        for inner in (message, *message.nested_type):
            name = message.name if inner is message else f"{message.name}.{inner.name}"
            known = {field.name: field for field in theirs[name].fields}
            for field in inner.field:
                assert (field.number, field.type) == (known[field.name].number, known[field.name].type), name
                fields += 1
    (types,) = ours.enum_type
    known_types = model_config_pb2.DESCRIPTOR.enum_types_by_name[types.name].values_by_name
    assert {value.name: value.number for value in types.value} == {
        name: value.number for name, value in known_types.items()
    }
    calls = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert {method.name for method in ours.service[0].method} <= set(calls)
    assert fields > 100


def check_health(target: Target) -> None:
    with client(target) as server:
        assert server.is_server_live()
        assert server.is_server_ready()
        assert server.is_server_ready(headers={"x-mine": "yes"}, client_timeout=PATIENCE_S)


def check_model_ready(target: Target) -> None:
    with client(target) as server:
        for name in target.models:
            assert server.is_model_ready(name)
            assert server.is_model_ready(name, "1")
            assert not server.is_model_ready(name, "2")
        assert not server.is_model_ready("shapes")


def check_server_metadata(target: Target) -> None:
    with client(target) as server:
        found = server.get_server_metadata(as_json=True)
    assert found["name"] == f"tandem-{target.service}"
    assert {"statistics", "model_configuration"} <= set(found["extensions"])


def check_model_metadata(target: Target) -> None:
    with client(target) as server:
        for version in ("", "1"):
            found = server.get_model_metadata("colors", version)
            assert (found.name, list(found.versions), found.platform) == ("colors", ["1"], "onnxruntime_onnx")
            (given,), (made,) = found.inputs, found.outputs
            assert (given.name, given.datatype, list(given.shape)) == ("input", "FP32", [-1, 3, 8, 8])
            assert (made.name, made.datatype, list(made.shape)) == ("logits", "FP32", [-1, 3])
        with refused("shapes", MISSING):
            server.get_model_metadata("shapes")
        with refused("2", *OTHER_VERSION):
            server.get_model_metadata("colors", "2")


def check_model_config(target: Target) -> None:
    with client(target) as server:
        for version in ("", "1"):
            found = server.get_model_config("colors", version).config
            assert (found.name, found.platform, found.backend) == (
                *("colors", "onnxruntime_onnx", "onnxruntime"),
            )
            assert found.max_batch_size == target.max_batch_size
            (given,), (made,) = found.input, found.output
            assert (given.name, given.data_type, list(given.dims)) == ("input", 11, [3, 8, 8])
            assert (made.name, made.data_type, list(made.dims)) == ("logits", 11, [3])
            assert found.HasField("dynamic_batching")
        with refused("shapes", MISSING):
            server.get_model_config("shapes")


def check_repository_index(target: Target) -> None:
    with client(target) as server:
        found = server.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in found] == [(name, "1", "READY") for name in target.models]


def check_statistics(target: Target) -> None:
    with client(target) as server:
        (before,) = server.get_inference_statistics("colors").model_stats
        server.infer("colors", [tensor(pixels(SURE, UNSURE))])
        with refused("input", INVALID):
            server.infer("colors", [tensor(pixels(SURE), "x")])
        (after,) = server.get_inference_statistics("colors", "1").model_stats
        every = server.get_inference_statistics().model_stats
        with refused("shapes", MISSING):
            server.get_inference_statistics("shapes")
    assert (after.name, after.version) == ("colors", "1")
    assert after.inference_count - before.inference_count == 2
    assert after.execution_count > before.execution_count
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output", "fail"):
        was, now = (getattr(stats.inference_stats, stage) for stats in (before, after))
        assert now.count == was.count + 1, stage
        assert now.ns >= was.ns, stage
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert sum(b.compute_infer.count for b in after.batch_stats) == after.execution_count
    assert [stats.name for stats in every] == target.models


def check_infer(target: Target) -> None:
    with client(target) as server:
        for version in ("", "1"):
            answer = server.infer(
                "colors",
                [tensor(pixels(SURE, UNSURE))],
                model_version=version,
                request_id="id-7",
                outputs=[triton.InferRequestedOutput("logits")],
                client_timeout=PATIENCE_S,
                headers={"x-mine": "yes"},
            )
            assert winners(answer.as_numpy("logits")) == [RED, BLUE]
            told = answer.get_response()
            assert (told.model_name, told.model_version, told.id) == ("colors", "1", "id-7")
            assert answer.as_numpy("else") is None


def check_batch(target: Target) -> None:
    many = [SURE, UNSURE] * (target.max_batch_size // 2)
    with client(target) as server:
        answer = server.infer("colors", [tensor(pixels(*many))])
        assert winners(answer.as_numpy("logits")) == [RED, BLUE] * (target.max_batch_size // 2)
        with refused(f"{len(many) + 1} samples", INVALID):
            server.infer("colors", [tensor(pixels(*many, SURE))])


def check_bytes(target: Target) -> None:
    given = tensor(objects(target.image, target.image), "image", "BYTES")
    with client(target) as server:
        if target.service == "edge":
            with refused("colors.image", MISSING):
                server.infer("colors.image", [given])
            return
        answer = server.infer("colors.image", [given])
        assert winners(answer.as_numpy("logits")) == [RED, RED]
        config = server.get_model_config("colors.image").config
        assert (config.input[0].data_type, list(config.input[0].dims)) == (13, [-1])


def check_uint8(target: Target) -> None:
    given = tensor(np.array([SURE, (0, 0, 255)], np.uint8), "features", "UINT8")
    with client(target) as server:
        if target.service == "edge":
            with refused("colors.tail.means", MISSING):
                server.infer("colors.tail.means", [given])
        else:
            answer = server.infer("colors.tail.means", [given])
            assert winners(answer.as_numpy("logits")) == [RED, BLUE]


def check_compression(target: Target) -> None:
    with client(target) as server:
        for algorithm in ("gzip", "deflate"):
            answer = server.infer(
                "colors", [tensor(pixels(*[SURE, UNSURE] * 8))], compression_algorithm=algorithm
            )
            assert winners(answer.as_numpy("logits")) == [RED, BLUE] * 8


def check_parameters(target: Target) -> None:
    with client(target) as server:
        answer = server.infer(
            "colors",
            [tensor(pixels(UNSURE))],
            parameters={"tandem_mode": "edge", "theirs": 1, "text": "x", "yes": True, "half": 0.5},
            priority=1,
            timeout=5_000_000,
            sequence_id=7,
            sequence_start=True,
            sequence_end=True,
        )
    told = answer.get_response().parameters
    if target.service == "edge":
        assert told["tandem_source"].string_param == "edge"
        assert winners(answer.as_numpy("logits")) == [RED]
    else:
        assert told["tandem_infer_ms"].double_param > 0
        assert winners(answer.as_numpy("logits")) == [BLUE]


def check_timeout(target: Target) -> None:
    with client(target) as server:
        for _ in range(20):
            with refused("", LATE):
                server.infer("colors", [tensor(pixels(SURE))], client_timeout=-1.0)
        if target.service == "cloud":  # the edge has deadlines of its own, and answers within them
            with refused("time", LATE):
                server.infer("colors", [tensor(pixels(SURE))], timeout=1)
        answer = server.infer("colors", [tensor(pixels(SURE))], client_timeout=PATIENCE_S)
    assert winners(answer.as_numpy("logits")) == [RED]


def check_plugin(target: Target) -> None:
    with client(target) as server:
        server.register_plugin(BasicAuth("someone", "secret"))
        answer = server.infer("colors", [tensor(pixels(SURE))])
        assert server.is_server_ready()
        server.unregister_plugin()
    assert winners(answer.as_numpy("logits")) == [RED]


def check_leaving_a_stream(target: Target) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with client(target) as server:
        server.start_stream(_into(answers))
        for at in range(8):
            server.async_stream_infer("colors", [tensor(pixels(SURE))], request_id=str(at))
        server.stop_stream(cancel_requests=True)
        assert server.is_server_ready()
        server.start_stream(_into(answers))
        server.async_stream_infer("colors", [tensor(pixels(SURE))], request_id="next")
        server.stop_stream()
        ids = [result.get_response().id for result, error in _all(answers) if error is None]
        assert ids[-1] == "next"


def _all(answers: "queue.Queue[tuple[Any, Any]]") -> Iterator[tuple[Any, Any]]:
    while not answers.empty():
        yield answers.get_nowait()


def check_requested_outputs(target: Target) -> None:
    with client(target) as server, refused("'else'", INVALID):
        server.infer("colors", [tensor(pixels(SURE))], outputs=[triton.InferRequestedOutput("else")])


def check_classification(target: Target) -> None:
    with client(target) as server:
        for count, given in ((1, 1), (3, 3), (9, 3)):
            wanted = triton.InferRequestedOutput("logits", class_count=count)
            found = server.infer("colors", [tensor(pixels(SURE, UNSURE))], outputs=[wanted])
            classes = found.as_numpy("logits")
            assert classes.shape == (2, given)
            for row, winner in zip(classes, (RED, BLUE), strict=True):
                value, index, label = row[0].decode().split(":")
                assert (int(index), label) == (winner, LABELS[winner])
                assert float(value) > 0
        with refused("classification", INVALID):
            wanted = triton.InferRequestedOutput("logits", class_count=-1)
            server.infer("colors", [tensor(pixels(SURE))], outputs=[wanted])


def check_async_infer(target: Target) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    colors = [SURE, UNSURE] * 20
    with client(target) as server:
        for at, color in enumerate(colors):
            server.async_infer("colors", [tensor(pixels(color))], _into(answers), request_id=str(at))
        for _ in colors:
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None, error
            at = int(result.get_response().id)
            assert winners(result.as_numpy("logits")) == [(RED, BLUE)[at % 2]]
        server.async_infer("shapes", [tensor(pixels(SURE))], _into(answers))
        result, error = answers.get(timeout=PATIENCE_S)
        assert (result, error.status()) == (None, MISSING)


def _into(answers: "queue.Queue[tuple[Any, Any]]") -> Callable[[Any, Any], None]:
    return lambda result, error: answers.put((result, error))


def check_stream(target: Target) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    colors = [SURE, UNSURE] * 20
    with client(target) as server:
        server.start_stream(_into(answers), headers={"x-mine": "yes"}, compression_algorithm="gzip")
        for at, color in enumerate(colors):
            server.async_stream_infer("colors", [tensor(pixels(color))], request_id=str(at))
        seen = set()
        for _ in colors:
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None, error
            at = int(result.get_response().id)
            seen.add(at)
            assert winners(result.as_numpy("logits")) == [(RED, BLUE)[at % 2]]
        assert seen == set(range(len(colors)))
        server.stop_stream()


def check_errors_on_a_stream_do_not_end_it(target: Target) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with client(target) as server:
        server.start_stream(_into(answers))
        for given, name, text in (
            (tensor(pixels(SURE)), "shapes", "shapes"),
            (tensor(pixels(SURE), "x"), "colors", "unknown input 'x'"),
            (tensor(pixels(SURE)[:, :2]), "colors", "[-1, 3, 8, 8]"),
        ):
            server.async_stream_infer(name, [given], request_id="bad")
            result, error = answers.get(timeout=PATIENCE_S)
            assert result is None
            assert text in error.message(), error.message()
            server.async_stream_infer("colors", [tensor(pixels(SURE))], request_id="good")
            result, error = answers.get(timeout=PATIENCE_S)
            assert error is None, error
            assert result.get_response().id == "good"
        server.stop_stream()


def check_stopping_a_stream_waits_for_its_answers(target: Target) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with client(target) as server:
        for _ in range(3):
            server.start_stream(_into(answers))
            for at in range(8):
                server.async_stream_infer("colors", [tensor(pixels(SURE))], request_id=str(at))
            server.stop_stream()
            got = [answers.get_nowait() for _ in range(8)]
            assert sorted(int(result.get_response().id) for result, _ in got) == list(range(8))


def check_errors_in_words(target: Target) -> None:
    with client(target) as server:
        with refused("shapes", MISSING):
            server.infer("shapes", [tensor(pixels(SURE))])
        with refused("2", *OTHER_VERSION):
            server.infer("colors", [tensor(pixels(SURE))], model_version="2")
        with refused("unknown input 'x'", INVALID):
            server.infer("colors", [tensor(pixels(SURE), "x")])
        with refused("FP32", INVALID):
            server.infer("colors", [tensor(pixels(SURE).astype(np.float64), datatype="FP64")])
        with refused("[-1, 3, 8, 8]", INVALID):
            server.infer("colors", [tensor(pixels(SURE)[:, :2])])
        with refused("NaN", INVALID):
            server.infer("colors", [tensor(pixels(SURE) * np.float32("nan"))])


def check_shared_memory_is_refused(target: Target) -> None:
    with client(target) as server:
        with refused("shared memory is not served here", NOT_HERE):
            server.get_system_shared_memory_status()
        with refused("shared memory is not served here", NOT_HERE):
            server.register_system_shared_memory("mine", "/mine", 64)
        with refused("shared memory is not served here", NOT_HERE):
            server.unregister_system_shared_memory()
        with refused("shared memory is not served here", NOT_HERE):
            server.get_cuda_shared_memory_status()
        with refused("shared memory is not served here", NOT_HERE):
            server.register_cuda_shared_memory("mine", b"aGFuZGxl", 0, 64)
        with refused("shared memory is not served here", NOT_HERE):
            server.unregister_cuda_shared_memory()
        given = triton.InferInput("input", [1, 3, 8, 8], "FP32")
        given.set_shared_memory("mine", 768)
        with refused("shared memory is not served", INVALID):
            server.infer("colors", [given])
        wanted = triton.InferRequestedOutput("logits")
        wanted.set_shared_memory("mine", 12)
        with refused("shared memory is not served", INVALID):
            server.infer("colors", [tensor(pixels(SURE))], outputs=[wanted])


def check_control_is_refused(target: Target) -> None:
    with client(target) as server:
        with refused("loading and unloading models is not served", NOT_HERE):
            server.load_model("colors")
        with refused("loading and unloading models is not served", NOT_HERE):
            server.unload_model("colors")
        with refused("trace settings are not served", NOT_HERE):
            server.get_trace_settings()
        with refused("trace settings are not served", NOT_HERE):
            server.update_trace_settings("colors", {"trace_level": ["OFF"]})
        with refused("log settings are not served", NOT_HERE):
            server.get_log_settings()
        with refused("log settings are not served", NOT_HERE):
            server.update_log_settings({"log_info": False})
        assert server.is_server_ready()


def check_asyncio_client(target: Target) -> None:
    async def asked() -> AsyncIterator[dict[str, Any]]:
        for at, color in enumerate([SURE, UNSURE] * 8):
            yield {"model_name": "colors", "inputs": [tensor(pixels(color))], "request_id": str(at)}

    async def talk() -> None:
        async with triton_aio.InferenceServerClient(target.grpc) as server:
            assert await server.is_server_live()
            assert await server.is_server_ready()
            assert await server.is_model_ready("colors")
            assert not await server.is_model_ready("shapes")
            assert (await server.get_model_config("colors")).config.name == "colors"
            assert len((await server.get_model_repository_index()).models) == len(target.models)
            assert (await server.get_inference_statistics()).model_stats
            answers = await asyncio.gather(
                *[server.infer("colors", [tensor(pixels(color))]) for color in (SURE, UNSURE) * 8]
            )
            assert [winners(a.as_numpy("logits"))[0] for a in answers] == [RED, BLUE] * 8
            seen = set()
            async for result, error in server.stream_infer(asked()):
                assert error is None, error
                at = int(result.get_response().id)
                seen.add(at)
                assert winners(result.as_numpy("logits")) == [(RED, BLUE)[at % 2]]
            assert seen == set(range(16))
            with refused("shapes", MISSING):
                await server.infer("shapes", [tensor(pixels(SURE))])

    asyncio.run(talk())


if __name__ == "__main__":
    run(dict(globals()))
