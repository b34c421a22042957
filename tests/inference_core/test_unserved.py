"""Calls that are refused in words: a real server, a real client."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from starlette.routing import compile_path

from inference_core.unserved import PATHS, refuse_calls
from protos import open_inference_pb2_grpc as oip_grpc

pytestmark = pytest.mark.anyio
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("SystemSharedMemoryStatus", "shared memory is not served here"),
        ("CudaSharedMemoryRegister", "shared memory is not served here"),
        ("RepositoryModelLoad", "loading and unloading models is not served here"),
        ("TraceSetting", "trace settings are not served here"),
        ("LogSettings", "log settings are not served here"),
        ("NobodyKnowsThis", "Method not found"),
    ],
)
async def test_call_is_refused_beside_those_that_are_served(call: str, words: str) -> None:
    server = grpc.aio.server()
    servicer = oip_grpc.GRPCInferenceServiceServicer()
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    refuse_calls(server, SERVICE)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        asked: Callable[..., Any] = channel.unary_unary(f"/{SERVICE}/{call}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(b"\x0a\x01x")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert words in (caught.value.details() or "")
    await server.stop(0)


@pytest.mark.parametrize(
    "url",
    [
        "/systemsharedmemory/status",
        "/systemsharedmemory/region/mine/register",
        "/cudasharedmemory/unregister",
        "/repository/models/digits/load",
        "/trace/setting",
        "/models/digits/trace/setting",
        "/logging",
    ],
)
def test_path_is_one_of_those_refused(url: str) -> None:
    assert [path for path, _ in PATHS if compile_path(path)[0].match(url)] != []


@pytest.mark.parametrize(
    "url", ["/repository/index", "/models/digits", "/models/digits/config", "/health/live"]
)
def test_path_that_is_served_is_not_one_of_them(url: str) -> None:
    assert [path for path, _ in PATHS if compile_path(path)[0].match(url)] == []
