"""The calls that Triton has and that nobody here serves: refused in words, because its clients show them."""

from typing import Any

import grpc

_MEMORY = "shared memory is not served here: send tensors in the request"
_CONTROL = "loading and unloading models is not served here"
_TRACE = "trace settings are not served here"
_LOG = "log settings are not served here"

# Paths below /v2, as routes have them.
PATHS = (
    ("/systemsharedmemory/{rest:path}", _MEMORY),
    ("/cudasharedmemory/{rest:path}", _MEMORY),
    ("/repository/models/{rest:path}", _CONTROL),
    ("/trace/setting", _TRACE),
    ("/models/{model}/trace/setting", _TRACE),
    ("/logging", _LOG),
)
_CALLS = {
    "SystemSharedMemoryStatus": _MEMORY,
    "SystemSharedMemoryRegister": _MEMORY,
    "SystemSharedMemoryUnregister": _MEMORY,
    "CudaSharedMemoryStatus": _MEMORY,
    "CudaSharedMemoryRegister": _MEMORY,
    "CudaSharedMemoryUnregister": _MEMORY,
    "RepositoryModelLoad": _CONTROL,
    "RepositoryModelUnload": _CONTROL,
    "TraceSetting": _TRACE,
    "LogSettings": _LOG,
}


def refuse_calls(server: grpc.aio.Server, service: str) -> None:
    """Have `server` answer those calls of `service` with UNIMPLEMENTED and with what is not served."""
    server.add_registered_method_handlers(service, {name: _refusal(words) for name, words in _CALLS.items()})


def _refusal(words: str) -> "grpc.RpcMethodHandler[bytes, bytes]":
    async def refuse(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, words)

    return grpc.unary_unary_rpc_method_handler(refuse)
