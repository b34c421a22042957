"""The service's streams as their clients see them: a real server, a real client."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cloud_service.servicer import SERVICE
from inference_core.tensors import Parameter, from_response, get_parameters, to_request
from protos import open_inference_pb2 as oip
from tests.bundles import SURE, UNSURE, Color, picture, pixels, write_bundle
from tests.cloud_service.service import Service, serving

pytestmark = pytest.mark.anyio

METHOD = {"grpc_type": "bidi_stream", "grpc_service": SERVICE, "grpc_method": "ModelStreamInfer"}
PATIENCE_S = 30.0
RED, BLUE = 0, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("stream") / "colors")


@pytest.fixture
async def service(bundle: Path) -> AsyncIterator[Service]:
    async with serving(bundle, max_batch_size=4, max_queue=5) as made:
        yield made


def request(
    color: Color, key: str, *, model: str = "colors", **parameters: Parameter
) -> oip.ModelInferRequest:
    return to_request(model, "", {"input": pixels(color)}, parameters, key)


def image(key: str) -> oip.ModelInferRequest:
    return to_request("colors.image", "", {"image": np.array([picture(UNSURE)], object)}, {}, key)


class Client:
    """One stream of a client, its messages as protobuf."""

    def __init__(self, service: Service) -> None:
        method: Any = service.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        self.call = method()

    async def send(self, *messages: oip.ModelInferRequest) -> None:
        for message in messages:
            await self.call.write(message.SerializeToString())

    async def receive(self) -> oip.ModelStreamInferResponse:
        async with asyncio.timeout(PATIENCE_S):
            data = await self.call.read()
        assert data is not grpc.aio.EOF, "the stream has ended"
        return oip.ModelStreamInferResponse.FromString(data)

    async def answer(self) -> tuple[str, int]:
        """The id of the next answer, and the class it names."""
        message = await self.receive()
        assert message.error_message == ""
        return message.infer_response.id, int(from_response(message.infer_response)["logits"][0].argmax())

    async def refusal(self) -> tuple[str, str, str]:
        """The id, the status and the text of the next answer."""
        message = await self.receive()
        parameters = get_parameters(message.infer_response.parameters)
        assert not message.infer_response.outputs
        return message.infer_response.id, str(parameters["tandem_status"]), message.error_message

    async def end(self) -> None:
        """Send no more, and see the stream end well."""
        await self.call.done_writing()
        async with asyncio.timeout(PATIENCE_S):
            assert await self.call.read() is grpc.aio.EOF
            assert await self.call.code() is grpc.StatusCode.OK


async def test_each_request_has_its_answer(service: Service) -> None:
    client = Client(service)
    await client.send(request(SURE, "a"), request(UNSURE, "b"), image("c"))
    found = sorted([await client.answer() for _ in range(3)])
    assert found == [("a", RED), ("b", BLUE), ("c", BLUE)]
    await client.end()


async def test_requests_of_one_stream_share_runs(service: Service) -> None:
    client = Client(service)
    with service.runs_held():
        await client.send(request(SURE, "first"))
        await service.began("colors")
        await client.send(*(request(UNSURE, str(at)) for at in range(4)))
        await service.queued("colors", 4)
    assert sorted([await client.answer() for _ in range(5)]) == [
        *((str(at), BLUE) for at in range(4)),
        ("first", RED),
    ]
    assert service.value("tandem_batch_size_count", model="colors") == 2
    await client.end()


async def test_an_answer_does_not_wait_for_one_asked_before_it(service: Service) -> None:
    client = Client(service)
    with service.runs_held():
        await client.send(request(SURE, "held"))
        await service.began("colors")
        await client.send(request(SURE, "wrong", model="shapes"))
        key, status, text = await client.refusal()
        assert (key, status) == ("wrong", "NOT_FOUND")
        assert "'shapes' is not served here" in text
    assert await client.answer() == ("held", RED)
    await client.end()


@pytest.mark.parametrize(
    ("message", "status", "text"),
    [
        (request(SURE, "x", tandem_bundle="0" * 64), "FAILED_PRECONDITION", "bundle 000000000000"),
        (
            request(SURE, "x", tandem_deadline_ms=-1.0),
            "INVALID_ARGUMENT",
            "must be a number from 0, got -1.0",
        ),
        (request(SURE, "x", tandem_deadline_ms=0.0), "DEADLINE_EXCEEDED", "too little time is left"),
        (request(SURE, "x", timeout=1), "DEADLINE_EXCEEDED", "too little time is left"),
        (oip.ModelInferRequest(model_name="colors", id="x"), "INVALID_ARGUMENT", "'input' is missing"),
    ],
    ids=["bundle", "no time", "late", "late as Triton says it", "no input"],
)
async def test_a_request_that_fails_has_its_status_and_the_stream_goes_on(
    service: Service, message: oip.ModelInferRequest, status: str, text: str
) -> None:
    client = Client(service)
    await client.send(message)
    refusal = await client.refusal()
    assert refusal[:2] == ("x", status)
    assert text in refusal[2]
    await client.send(request(SURE, "next"))
    assert await client.answer() == ("next", RED)
    await client.end()
    await service.idle()
    # a request for another bundle is not one of the model that is here
    models, count = ("colors", "unknown"), "tandem_cloud_requests_total"
    assert sum(service.value(count, model=model, outcome=status.lower()) for model in models) == 1
    assert service.value(count, model="colors", outcome="ok") == 1
    assert service.total(count) == 2


async def test_a_request_that_is_late_in_the_queue_is_not_run(service: Service) -> None:
    client = Client(service)
    with service.runs_held():
        await client.send(request(SURE, "first"))
        await service.began("colors")
        await client.send(request(UNSURE, "late", tandem_deadline_ms=50.0))
        await service.queued("colors", 1)
        await asyncio.sleep(0.06)  # the deadline itself
    found = {(await client.receive()).error_message for _ in range(2)}
    assert found == {"", "too little time is left for a run"}
    assert service.value("tandem_batch_size_sum", model="colors") == 1
    await client.end()


async def test_a_stream_has_room_for_so_many_and_refuses_the_rest(service: Service) -> None:
    client = Client(service)
    with service.runs_held():
        await client.send(*(request(SURE, str(at)) for at in range(12)))
        refusals = [await client.refusal() for _ in range(7)]
    assert {status for _, status, _ in refusals} == {"RESOURCE_EXHAUSTED"}
    assert any("that is the limit" in text for _, _, text in refusals)
    answers = [await client.answer() for _ in range(5)]
    assert {key for key, _, _ in refusals} | {key for key, _ in answers} == {str(at) for at in range(12)}
    await client.end()
    await service.idle()
    exhausted = service.value("tandem_cloud_requests_total", model="colors", outcome="resource_exhausted")
    assert exhausted == 7
    assert service.total("tandem_cloud_inflight_requests") == 0


async def test_a_client_that_hangs_up_has_nothing_run_for_it(service: Service) -> None:
    client, other = Client(service), Client(service)
    with service.runs_held():
        await other.send(request(SURE, "other"))
        await service.began("colors")
        await client.send(request(UNSURE, "gone"), request(UNSURE, "gone too"))
        await service.queued("colors", 2)
        client.call.cancel()
        await service.queued("colors", 0)
    assert await other.answer() == ("other", RED)
    await other.end()
    await service.idle()
    assert service.value("tandem_cloud_requests_total", model="colors", outcome="cancelled") == 2
    assert service.value("tandem_batch_size_sum", model="colors") == 1
    assert service.total("tandem_cloud_inflight_requests") == 0


async def test_what_is_no_message_ends_the_stream_and_only_that(service: Service) -> None:
    client = Client(service)
    await client.call.write(b"\xff" * 40)
    with pytest.raises(grpc.aio.AioRpcError, match="no ModelInferRequest") as caught:
        await client.receive()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    other = Client(service)
    await other.send(request(SURE, "a"))
    assert await other.answer() == ("a", RED)
    await other.end()


async def test_a_service_that_stops_answers_what_it_has_read_and_ends_its_streams(service: Service) -> None:
    client, idle = Client(service), Client(service)
    await idle.send(request(SURE, "before", model="shapes"))
    assert (await idle.refusal())[0] == "before"
    with service.runs_held():
        await client.send(request(SURE, "first"))
        await service.began("colors")
        await client.send(request(UNSURE, "waiting"))
        await service.queued("colors", 1)
        stopping = asyncio.create_task(service.server.stop(PATIENCE_S))
        async with asyncio.timeout(PATIENCE_S):
            assert await idle.call.read() is grpc.aio.EOF
    assert sorted([await client.answer(), await client.answer()]) == [("first", RED), ("waiting", BLUE)]
    await stopping


async def test_a_bug_costs_one_request_and_tells_nothing(bundle: Path) -> None:
    async with serving(bundle) as service:
        client = Client(service)
        service.runs.shutdown()  # nobody does that while requests come in
        await client.send(request(SURE, "a"))
        text = "internal error; the service's log has the details"
        assert await client.refusal() == ("a", "INTERNAL", text)
        await client.end()


async def test_streams_messages_and_bytes_are_counted(service: Service) -> None:
    client = Client(service)
    messages = [request(SURE, "a"), request(UNSURE, "b")]
    await client.send(*messages)
    sent = sum([(await client.receive()).ByteSize() for _ in messages])
    await client.end()
    await service.idle()
    assert service.value("grpc_server_started_total", **METHOD) == 1
    assert service.value("grpc_server_handled_total", **METHOD, grpc_code="OK") == 1
    assert service.value("grpc_server_msg_received_total", **METHOD) == 2
    assert service.value("grpc_server_msg_sent_total", **METHOD) == 2
    sizes = {"received": sum(message.ByteSize() for message in messages), "sent": sent}
    for direction, size in sizes.items():
        assert service.value("tandem_cloud_bytes_total", model="colors", direction=direction) == size


async def test_answers_say_how_long_the_service_had_them(service: Service) -> None:
    client = Client(service)
    await client.send(request(SURE, "a"))
    told = get_parameters((await client.receive()).infer_response.parameters)
    times = {name: float(value) for name, value in told.items() if name.endswith("_ms")}
    assert times.keys() == {"tandem_queue_ms", "tandem_infer_ms", "tandem_total_ms"}
    assert all(0 <= value < 10_000 for value in times.values())
    assert times["tandem_total_ms"] >= times["tandem_infer_ms"]
    await client.end()


async def test_a_client_that_does_not_read_is_not_read_from_for_ever(service: Service) -> None:
    client = Client(service)
    padding = "x" * 4000

    async def send() -> None:
        for at in range(4000):
            await client.send(request(SURE, f"{at}{padding}", model="shapes"))

    with service.runs_held():
        sending = asyncio.create_task(send())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.shield(sending)
        read = service.value("grpc_server_msg_received_total", **METHOD)
        assert read < 4000
        for _ in range(4000):
            assert (await client.refusal())[1] in {"NOT_FOUND", "RESOURCE_EXHAUSTED"}
    await sending
    await client.end()


async def test_short_runs_of_an_idle_model_skip_the_thread(bundle: Path) -> None:
    async with serving(bundle, inline_ms=100.0) as service:
        client = Client(service)
        with service.runs_held():
            await client.send(request(SURE, "a"), image("b"))
            assert sorted([await client.answer(), await client.answer()]) == [("a", RED), ("b", BLUE)]
        await client.end()
