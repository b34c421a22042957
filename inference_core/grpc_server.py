"""A gRPC server that no call can end.

gRPC for Python (1.85) reads the name of each unknown method as UTF-8 in the loop that takes all calls. One
that is not UTF-8 ends the loop: the port closes for good (and twice the process was seen to crash after
that). So unknown methods do not come to that loop here: they are answered where they are taken, whatever they
are called. Nothing public lets one do that; `tests/inference_core/test_grpc_server.py` shows
that it works with the gRPC that is installed, and that it is needed.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

_core: Any = grpc._cython.cygrpc  # type: ignore[attr-defined]
_aio: Any = grpc.aio._server  # type: ignore[attr-defined]
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]


class _Core(_core.AioServer):  # type: ignore[misc]
    """Takes calls of the methods that are registered; answers all others."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *rest: object) -> None:
        super().__init__(loop, *rest)
        self._own_loop = loop
        self._refusals: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> None:
        """Never returns: it would be with a call that the loop cannot read, perhaps."""
        while True:
            call = await super()._request_call()
            task = self._own_loop.create_task(self._refuse(call))
            self._refusals.add(task)
            task.add_done_callback(self._refusals.discard)

    async def _refuse(self, call: object) -> None:
        metadata = _core.SendInitialMetadataOperation((), 0)
        try:
            await _core._send_error_status_from_server(
                call, _UNIMPLEMENTED, "Method not found!", (), metadata, self._own_loop
            )
        except _core.ExecuteBatchError:
            return  # the caller has gone


class _Server(_aio.Server):  # type: ignore[misc]
    """gRPC's own, around that core."""

    def __init__(
        self, interceptors: Sequence[object], options: Sequence[tuple[str, int]], calls: int
    ) -> None:
        self._loop = _core.get_working_loop()
        self._server = _Core(self._loop, None, (), tuple(interceptors), tuple(options), calls)


def create_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, int]], calls: int
) -> grpc.aio.Server:
    """A server for registered methods, which answers so many `calls` at a time."""
    server: grpc.aio.Server = _Server(interceptors, options, calls)
    return server
