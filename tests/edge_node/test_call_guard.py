"""gRPC with keys: a real server and client; strangers get no further than the door."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_node.grpc_api import GrpcServer, Servicer
from edge_node.keys import Entry, Keyring
from inference_core.body import Intake
from inference_core.tensors import get_parameters, to_request
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import SURE, pixels
from tests.edge_node.node import Node

pytestmark = pytest.mark.anyio

BEARER = (("authorization", "Bearer good"),)
API_KEY = (("x-api-key", "good"),)


def keyring(**limits: Any) -> Keyring:
    entry = Entry(name="camera", sha256=hashlib.sha256(b"good").hexdigest(), **limits)
    return Keyring([entry], lambda: 0.0)


@contextlib.asynccontextmanager
async def serving(edge: Node, ring: Keyring) -> AsyncIterator[grpc.aio.Channel]:
    server = GrpcServer(
        Servicer(edge.dataplane, edge.metrics, Intake(16 << 20, 64 << 20), ring), edge.settings
    )
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel
    finally:
        await server.stop(0)


def stub(channel: grpc.aio.Channel) -> Any:
    return oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def request(size: int = 1) -> oip.ModelInferRequest:
    return to_request("colors", "", {"input": np.repeat(pixels(SURE), size, 0)}, {}, "id-7")


async def status(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def test_a_key_opens_every_call(edge: Node) -> None:
    async with serving(edge, keyring()) as channel:
        for metadata in (BEARER, API_KEY):
            answer = await stub(channel).ModelInfer(request(), metadata=metadata)
            assert get_parameters(answer.parameters)["tandem_source"] == "edge"
            assert (await stub(channel).ServerMetadata(oip.ServerMetadataRequest(), metadata=metadata)).name


async def test_without_one_nothing_is_answered_but_health(edge: Node) -> None:
    async with serving(edge, keyring()) as channel:
        unserved: Any = channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")
        wrong = (("authorization", "Bearer wrong"),)
        assert await status(stub(channel).ModelInfer(request())) == (
            "UNAUTHENTICATED",
            "key: none was sent; send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
        )
        for call in (
            stub(channel).ModelInfer(request(), metadata=wrong),
            stub(channel).ServerMetadata(oip.ServerMetadataRequest()),
            stub(channel).ModelStreamInfer(iter([request()])).read(),
            unserved(b""),
        ):
            assert (await status(call))[0] == "UNAUTHENTICATED"
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert edge.value("tandem_refused_requests_total", api="grpc", status="UNAUTHENTICATED") == 5


async def test_strangers_who_watch_the_health_leave_room_for_devices(edge: Node) -> None:
    edge.settings = edge.settings.model_copy(update={"max_calls": 8})
    async with serving(edge, keyring()) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        for watch in watches:
            await watch.read()
        more = health.Watch(health_pb2.HealthCheckRequest())
        assert (await status(more.read()))[0] == "RESOURCE_EXHAUSTED"
        assert (await status(health.Check(health_pb2.HealthCheckRequest())))[0] == "RESOURCE_EXHAUSTED"
        assert (await stub(channel).ModelInfer(request(), metadata=BEARER)).model_name == "colors"
        for watch in watches:
            watch.cancel()
        await asyncio.sleep(0.1)
        assert await health.Check(health_pb2.HealthCheckRequest())


async def test_what_strangers_ask_of_the_health_is_bounded_and_no_fault_of_ours(edge: Node) -> None:
    async with serving(edge, keyring()) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        for call in (check(b"\xff\xff"), watch(b"\xff\xff").read()):
            assert (await status(call))[0] == "INVALID_ARGUMENT"
        long = health_pb2.HealthCheckRequest(service="x" * (1 << 20)).SerializeToString()
        for call in (check(long), watch(long).read()):
            assert (await status(call))[0] == "RESOURCE_EXHAUSTED"


async def test_what_a_stranger_sends_is_not_read(edge: Node) -> None:
    async with serving(edge, keyring()) as channel:
        call: Any = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1 << 16)

        assert (await status(call(endless(), timeout=5)))[0] == "UNAUTHENTICATED"


async def test_a_key_for_other_models_or_used_up(edge: Node) -> None:
    async with serving(edge, keyring(models=["digits"])) as channel:
        refused = await status(stub(channel).ModelInfer(request(), metadata=BEARER))
        assert refused == ("PERMISSION_DENIED", "key 'camera': may not ask for model 'colors'")
    async with serving(edge, keyring(rate=0.1)) as channel:
        await stub(channel).ModelInfer(request(), metadata=BEARER)
        refused = await status(stub(channel).ModelInfer(request(), metadata=BEARER))
        assert refused[0] == "RESOURCE_EXHAUSTED"


async def test_each_request_of_a_stream_is_looked_at(edge: Node) -> None:
    ring = keyring(rate=0.1, burst=2)
    async with serving(edge, ring) as channel:
        stream = stub(channel).ModelStreamInfer(metadata=BEARER)
        answers = []
        for _ in range(3):
            await stream.write(request())
            answers.append(await stream.read())
        ring.replace([])
        await stream.write(request())
        answers.append(await stream.read())
        await stream.done_writing()
    said = [get_parameters(answer.infer_response.parameters).get("tandem_status", "OK") for answer in answers]
    assert said == ["OK", "OK", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"]
