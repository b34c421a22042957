"""Every call of `tritonclient.http` that a service without shared memory and repository control can answer,
and that the others are refused in words. `python -m tests.conformance.http_checks TARGET`."""

import asyncio
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.http.auth import BasicAuth

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

FAR = 10.0


def client(target: Target, **options: Any) -> Any:
    return triton.InferenceServerClient(target.http, network_timeout=FAR, **options)


def tensor(array: NDArray[Any], name: str = "input", datatype: str = "FP32", binary_data: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary_data)
    return given


def check_health(target: Target) -> None:
    with client(target) as server:
        assert server.is_server_live()
        assert server.is_server_ready()


def check_model_ready(target: Target) -> None:
    with client(target) as server:
        for name in target.models:
            assert server.is_model_ready(name)
            assert server.is_model_ready(name, "1")
            assert not server.is_model_ready(name, "2")
        assert not server.is_model_ready("shapes")


def check_server_metadata(target: Target) -> None:
    with client(target) as server:
        found = server.get_server_metadata()
    assert found["name"] == f"tandem-{target.service}"
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(found["extensions"])


def check_model_metadata(target: Target) -> None:
    with client(target) as server:
        for version in ("", "1"):
            found = server.get_model_metadata("colors", version)
            assert (found["name"], found["versions"]) == ("colors", ["1"])
            assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
            assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
        with refused("shapes", "404"):
            server.get_model_metadata("shapes")
        with refused("2", "404"):
            server.get_model_metadata("colors", "2")


def check_model_config(target: Target) -> None:
    with client(target) as server:
        for version in ("", "1"):
            found = server.get_model_config("colors", version)
            assert (found["name"], found["platform"]) == ("colors", "onnxruntime_onnx")
            assert found["max_batch_size"] == target.max_batch_size
            assert found["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}]
            assert found["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}]
        assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 0
        with refused("shapes", "404"):
            server.get_model_config("shapes")


def check_repository_index(target: Target) -> None:
    with client(target) as server:
        found = server.get_model_repository_index()
    assert [(m["name"], m["version"], m["state"]) for m in found] == [
        (name, "1", "READY") for name in target.models
    ]


def check_statistics(target: Target) -> None:
    with client(target) as server:
        (before,) = server.get_inference_statistics("colors")["model_stats"]
        server.infer("colors", [tensor(pixels(SURE, UNSURE))])
        with refused("input", "400"):
            server.infer("colors", [tensor(pixels(SURE), "x")])
        (after,) = server.get_inference_statistics("colors", "1")["model_stats"]
        every = server.get_inference_statistics()["model_stats"]
        with refused("shapes", "404"):
            server.get_inference_statistics("shapes")
    assert (after["name"], after["version"]) == ("colors", "1")
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] > before["execution_count"]
    assert after["last_inference"] > max(before["last_inference"], 1_600_000_000_000)
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        was, now = (stats["inference_stats"][stage] for stats in (before, after))
        assert now["count"] == was["count"] + 1, stage
        assert now["ns"] >= was["ns"], stage
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"] + 1
    assert sum(b["compute_infer"]["count"] for b in after["batch_stats"]) == after["execution_count"]
    assert [stats["name"] for stats in every] == target.models


def check_infer_binary(target: Target) -> None:
    with client(target) as server:
        for version in ("", "1"):
            answer = server.infer("colors", [tensor(pixels(SURE, UNSURE))], model_version=version)
            assert winners(answer.as_numpy("logits")) == [RED, BLUE]
            told = answer.get_response()
            assert (told["model_name"], told["model_version"]) == ("colors", "1")
            assert answer.get_output("logits")["parameters"] == {"binary_data_size": 24}
            assert answer.as_numpy("else") is None


def check_infer_json(target: Target) -> None:
    outputs = [triton.InferRequestedOutput("logits", binary_data=False)]
    with client(target) as server:
        given = [tensor(pixels(SURE, UNSURE), binary_data=False)]
        answer = server.infer("colors", given, outputs=outputs)
    assert winners(answer.as_numpy("logits")) == [RED, BLUE]
    assert len(answer.get_output("logits")["data"]) == 6


def check_infer_mixed(target: Target) -> None:
    with client(target) as server:
        for given_binary, wanted_binary in ((True, False), (False, True)):
            given = tensor(pixels(UNSURE), binary_data=given_binary)
            wanted = triton.InferRequestedOutput("logits", binary_data=wanted_binary)
            answer = server.infer("colors", [given], outputs=[wanted])
            assert winners(answer.as_numpy("logits")) == [BLUE]
            assert ("data" in answer.get_output("logits")) != wanted_binary


def check_batch(target: Target) -> None:
    many = [SURE, UNSURE] * (target.max_batch_size // 2)
    with client(target) as server:
        answer = server.infer("colors", [tensor(pixels(*many))])
        assert winners(answer.as_numpy("logits")) == [RED, BLUE] * (target.max_batch_size // 2)
        with refused(f"{len(many) + 1} samples", "400"):
            server.infer("colors", [tensor(pixels(*many, SURE))])
        with refused("samples", "400"):
            server.infer("colors", [tensor(pixels())])


def check_bytes(target: Target) -> None:
    given = tensor(objects(target.image, target.image), "image", "BYTES")
    with client(target) as server:
        if target.service == "edge":
            with refused("colors.image", "404"):
                server.infer("colors.image", [given])
            return
        answer = server.infer("colors.image", [given])
        assert winners(answer.as_numpy("logits")) == [RED, RED]
        assert server.get_model_metadata("colors.image")["inputs"] == [
            {"name": "image", "datatype": "BYTES", "shape": [-1]}
        ]
        config = server.get_model_config("colors.image")
        assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}]
        with refused("image: not one of JPEG", "400"):
            server.infer("colors.image", [tensor(objects(b"text"), "image", "BYTES", binary_data=False)])


def check_uint8(target: Target) -> None:
    means = np.array([SURE, (0, 0, 255)], np.uint8)
    with client(target) as server:
        for binary in (True, False):
            given = tensor(means, "features", "UINT8", binary_data=binary)
            if target.service == "edge":
                with refused("colors.tail.means", "404"):
                    server.infer("colors.tail.means", [given])
            else:
                answer = server.infer("colors.tail.means", [given])
                assert winners(answer.as_numpy("logits")) == [RED, BLUE]


def check_compression(target: Target) -> None:
    long = "x" * 2000  # short answers are not compressed; the id comes back
    with client(target) as server:
        for up in (None, "gzip", "deflate"):
            for down in (None, "gzip", "deflate"):
                for binary in (True, False):
                    answer = server.infer(
                        "colors",
                        [tensor(pixels(*[SURE, UNSURE] * 8), binary_data=binary)],
                        outputs=[triton.InferRequestedOutput("logits", binary_data=binary)],
                        request_id=long,
                        request_compression_algorithm=up,
                        response_compression_algorithm=down,
                    )
                    assert winners(answer.as_numpy("logits")) == [RED, BLUE] * 8
                    assert answer.get_response()["id"] == long


def check_answers_are_compressed_as_asked(target: Target) -> None:
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor(pixels(SURE))], request_id="x" * 2000
    )
    with client(target) as server:
        for encoding in (None, "gzip", "deflate"):
            headers = {"Inference-Header-Content-Length": length}
            if encoding is not None:
                headers["Accept-Encoding"] = encoding
            response = server._post("v2/models/colors/infer", body, headers, None)
            assert response.get("Content-Encoding") == encoding
            content = response.read()
            assert len(content) < 1000 if encoding else len(content) > 2000
            answer = triton.InferenceServerClient.parse_response_body(
                content,
                header_length=int(response.get("Inference-Header-Content-Length")),
                content_encoding=encoding,
            )
            assert winners(answer.as_numpy("logits")) == [RED]


def check_request_id(target: Target) -> None:
    with client(target) as server:
        answer = server.infer("colors", [tensor(pixels(SURE))], request_id="id-7")
    assert answer.get_response()["id"] == "id-7"


def check_parameters(target: Target) -> None:
    with client(target) as server:
        answer = server.infer(
            "colors",
            [tensor(pixels(UNSURE))],
            parameters={"tandem_mode": "edge", "theirs": 1, "text": "x", "yes": True},
            priority=1,
            sequence_id=7,
            sequence_start=True,
            sequence_end=True,
        )
        told = answer.get_response()["parameters"]
    if target.service == "edge":
        assert told["tandem_source"] == "edge"
        assert winners(answer.as_numpy("logits")) == [RED]
    else:
        assert told["tandem_infer_ms"] >= 0
        assert winners(answer.as_numpy("logits")) == [BLUE]


def check_headers_and_query(target: Target) -> None:
    more = {"headers": {"X-Mine": "yes"}, "query_params": {"a": 1, "b": ["c", "d"]}}
    with client(target) as server:
        assert server.is_server_ready(**more)
        assert server.is_model_ready("colors", **more)
        assert server.get_model_config("colors", **more)["name"] == "colors"
        answer = server.infer("colors", [tensor(pixels(SURE))], **more)
    assert winners(answer.as_numpy("logits")) == [RED]


def check_timeout(target: Target) -> None:
    with client(target, connection_timeout=FAR) as server:
        answer = server.infer("colors", [tensor(pixels(SURE))], timeout=5_000_000)
        assert winners(answer.as_numpy("logits")) == [RED]
        if target.service == "cloud":  # the edge has deadlines of its own, and answers within them
            with refused("time", "504"):
                server.infer("colors", [tensor(pixels(SURE))], timeout=1)


def check_plugin(target: Target) -> None:
    with client(target) as server:
        server.register_plugin(BasicAuth("someone", "secret"))
        answer = server.infer("colors", [tensor(pixels(SURE))])
        assert server.is_server_ready()
        server.unregister_plugin()
    assert winners(answer.as_numpy("logits")) == [RED]


def check_requested_outputs(target: Target) -> None:
    with client(target) as server:
        answer = server.infer(
            "colors", [tensor(pixels(SURE))], outputs=[triton.InferRequestedOutput("logits")]
        )
        assert winners(answer.as_numpy("logits")) == [RED]
        with refused("'else'", "400"):
            server.infer("colors", [tensor(pixels(SURE))], outputs=[triton.InferRequestedOutput("else")])


def check_classification(target: Target) -> None:
    with client(target) as server:
        for binary in (True, False):
            for count, given in ((1, 1), (3, 3), (9, 3)):
                wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=count)
                answer = server.infer("colors", [tensor(pixels(SURE, UNSURE))], outputs=[wanted])
                found = answer.as_numpy("logits")
                assert answer.get_output("logits")["datatype"] == "BYTES"
                assert found.shape == (2, given)
                for row, winner in zip(found, (RED, BLUE), strict=True):
                    text = row[0].decode() if isinstance(row[0], bytes) else row[0]
                    value, index, label = text.split(":")
                    assert (int(index), label) == (winner, LABELS[winner])
                    assert float(value) > 0
        with refused("classification", "400"):
            wanted = triton.InferRequestedOutput("logits", class_count=-1)
            server.infer("colors", [tensor(pixels(SURE))], outputs=[wanted])


def check_async_infer(target: Target) -> None:
    with client(target, concurrency=8) as server:
        colors = [SURE, UNSURE] * 20
        waiting = [
            server.async_infer("colors", [tensor(pixels(color))], request_id=str(at))
            for at, color in enumerate(colors)
        ]
        for at, each in enumerate(waiting):
            answer = each.get_result(timeout=FAR)
            assert answer.get_response()["id"] == str(at)
            assert winners(answer.as_numpy("logits")) == [(RED, BLUE)[at % 2]]
        with refused("shapes", "404"):
            server.async_infer("shapes", [tensor(pixels(SURE))]).get_result(timeout=FAR)


def check_bodies_made_apart(target: Target) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([tensor(pixels(UNSURE))])
    with client(target) as server:
        headers = {"Inference-Header-Content-Length": length}
        response = server._post("v2/models/colors/infer", body, headers, None)
        content = response.read()
        told = response.get("Inference-Header-Content-Length")
    answer = triton.InferenceServerClient.parse_response_body(content, header_length=int(told))
    assert winners(answer.as_numpy("logits")) == [BLUE]


def check_errors_in_words(target: Target) -> None:
    with client(target) as server:
        with refused("shapes", "404"):
            server.infer("shapes", [tensor(pixels(SURE))])
        with refused("2", "404"):
            server.infer("colors", [tensor(pixels(SURE))], model_version="2")
        with refused("unknown input 'x'", "400"):
            server.infer("colors", [tensor(pixels(SURE), "x")])
        with refused("FP32", "400"):
            server.infer("colors", [tensor(pixels(SURE).astype(np.float64), datatype="FP64")])
        with refused("[-1, 3, 8, 8]", "400"):
            server.infer("colors", [tensor(pixels(SURE)[:, :2])])
        with refused("NaN", "400"):
            server.infer("colors", [tensor(pixels(SURE) * np.float32("nan"))])
        answer = server.infer("colors", [tensor(pixels(SURE))])
    assert winners(answer.as_numpy("logits")) == [RED]


def check_shared_memory_is_refused(target: Target) -> None:
    text = "shared memory is not served"
    with client(target) as server:
        with refused(text, "404"):
            server.get_system_shared_memory_status()
        with refused(text, "404"):
            server.register_system_shared_memory("mine", "/mine", 64)
        with refused(text, "404"):
            server.unregister_system_shared_memory()
        with refused(text, "404"):
            server.get_cuda_shared_memory_status("mine")
        with refused(text, "404"):
            server.register_cuda_shared_memory("mine", b"handle", 0, 64)
        with refused(text, "404"):
            server.unregister_cuda_shared_memory("mine")
        given = triton.InferInput("input", [1, 3, 8, 8], "FP32")
        given.set_shared_memory("mine", 768)
        with refused(text, "400"):
            server.infer("colors", [given])
        wanted = triton.InferRequestedOutput("logits")
        wanted.set_shared_memory("mine", 12)
        with refused(text, "400"):
            server.infer("colors", [tensor(pixels(SURE))], outputs=[wanted])


def check_control_is_refused(target: Target) -> None:
    with client(target) as server:
        with refused("loading and unloading models is not served", "404"):
            server.load_model("colors")
        with refused("loading and unloading models is not served", "404"):
            server.unload_model("colors")
        with refused("trace settings are not served", "404"):
            server.get_trace_settings()
        with refused("trace settings are not served", "404"):
            server.update_trace_settings("colors", {"trace_level": ["OFF"]})
        with refused("log settings are not served", "404"):
            server.get_log_settings()
        with refused("log settings are not served", "404"):
            server.update_log_settings({"log_info": False})
        assert server.is_server_ready()


def check_asyncio_client(target: Target) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(target.http) as server:
            assert await server.is_server_live()
            assert await server.is_server_ready()
            assert await server.is_model_ready("colors")
            assert not await server.is_model_ready("shapes")
            assert (await server.get_server_metadata())["name"] == f"tandem-{target.service}"
            assert (await server.get_model_config("colors"))["name"] == "colors"
            assert len(await server.get_model_repository_index()) == len(target.models)
            assert (await server.get_inference_statistics("colors"))["model_stats"]
            asked = [server.infer("colors", [tensor(pixels(c))]) for c in (SURE, UNSURE) * 8]
            answers = await asyncio.gather(*asked)
            assert [winners(a.as_numpy("logits"))[0] for a in answers] == [RED, BLUE] * 8
            answer = await server.infer(
                "colors",
                [tensor(pixels(SURE))],
                request_compression_algorithm="gzip",
                response_compression_algorithm="gzip",
            )
            assert winners(answer.as_numpy("logits")) == [RED]
            with refused("shapes", "404"):
                await server.infer("shapes", [tensor(pixels(SURE))])

    asyncio.run(talk())


if __name__ == "__main__":
    run(dict(globals()))
