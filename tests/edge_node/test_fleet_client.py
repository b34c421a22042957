"""Every status of the cloud has something that there is to do about it."""

import asyncio
from typing import Any

import grpc
import pytest

from edge_node.disclosure import Disclosed
from edge_node.fleet_client import FleetClient, Line, NotTaken, Trouble
from protos import fleet_pb2 as pb
from tests.bundles import SURE, pixels
from tests.edge_node.fleet_server import Way, fleet_server
from tests.edge_node.outbox import sample

pytestmark = pytest.mark.anyio
FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
EXPECTED = {
    "INVALID_ARGUMENT": Trouble.REFUSED,
    "OUT_OF_RANGE": Trouble.REFUSED,
    "FAILED_PRECONDITION": Trouble.ELSEWHERE,
    "NOT_FOUND": Trouble.ELSEWHERE,
    "RESOURCE_EXHAUSTED": Trouble.BUSY,
    "DEADLINE_EXCEEDED": Trouble.LATE,
    "UNAVAILABLE": Trouble.GONE,
    "CANCELLED": Trouble.GONE,
    "UNIMPLEMENTED": Trouble.UNSUPPORTED,
    "UNAUTHENTICATED": Trouble.FORBIDDEN,
    "PERMISSION_DENIED": Trouble.FORBIDDEN,
}


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
async def test_every_status_is_some_trouble(code: grpc.StatusCode) -> None:
    async with fleet_server() as (fleet, way):
        fleet.statuses = [code]
        client = FleetClient(way, "node-7", 1 << 20)
        with pytest.raises(NotTaken, match=f"{code.name}: because") as caught:
            await client.put(client.message(sample(), Disclosed(image=b"image")), id)
        assert caught.value.trouble is EXPECTED.get(code.name, Trouble.FAILED)


async def test_a_sample_travels_with_what_is_known_of_it() -> None:
    tensors = {"input": pixels(SURE)}
    async with fleet_server() as (fleet, way):
        client, sent = FleetClient(way, "node-7", 1 << 20), list[int]()
        receipt = await client.put(client.message(sample(), Disclosed(tensors=tensors)), sent.append)
        assert (receipt.index, receipt.label, sent) == (2, "blue", way.sent)
        features = Disclosed(tensors=tensors, cut="means")
        await client.put(client.message(sample(), features), sent.append)
    one, other = fleet.received
    assert (one.key, one.node, one.kept_at, one.HasField("edge")) == ("0" * 32, "node-7", 1e6, False)
    tensor = pb.Tensor(name="input", datatype="FP32", shape=(1, 3, 8, 8), data=tensors["input"].tobytes())
    assert one.tensor == tensor
    assert (other.features.cut, list(other.features.tensors)) == ("means", [tensor])


async def test_a_connection_that_is_closed_meanwhile_is_gone_and_nobody_was_cancelled() -> None:
    async with fleet_server() as (fleet, way):
        fleet.silent = True
        client = FleetClient(way, "node-7", 1 << 20)
        message = client.message(sample(), Disclosed(image=b"image"))
        put = asyncio.create_task(client.put(message, id))
        await fleet.asked.wait()
        await way.channel.close()
        with pytest.raises(NotTaken, match="closed during the call") as caught:
            await put
        assert caught.value.trouble is Trouble.GONE


async def test_who_stops_it_stops_it() -> None:
    async with fleet_server() as (fleet, way):
        fleet.silent = True
        client = FleetClient(way, "node-7", 1 << 20)
        put = asyncio.create_task(client.put(client.message(sample(), Disclosed(image=b"image")), id))
        await fleet.asked.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put


async def test_an_answer_that_is_no_message_is_the_cloud_s_failure() -> None:
    async def babble(_: object, context: Any) -> bytes:
        return b"\xff" * 9

    server = grpc.aio.server()
    methods: dict[str, Any] = {"PutSample": grpc.unary_unary_rpc_method_handler(babble)}
    server.add_registered_method_handlers("tandem.fleet.v1.Fleet", methods)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = FleetClient(Way(channel), "node-7", 1 << 20)
        with pytest.raises(NotTaken, match="no message") as caught:
            await client.put(client.message(sample(), Disclosed(image=b"image")), id)
    await server.stop(0)
    assert caught.value.trouble is Trouble.FAILED


def test_a_message_over_the_limit_is_not_made() -> None:
    class NoWay:
        def reachable(self) -> bool:
            return False

        def uplink(self, nbytes: int) -> Line:
            raise AssertionError("nothing was to be sent")

    with pytest.raises(NotTaken, match="the limit is 100") as caught:
        FleetClient(NoWay(), "node-7", 100).message(sample(), Disclosed(image=b"x" * 100))
    assert caught.value.trouble is Trouble.REFUSED
