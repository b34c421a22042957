"""One client's stream of requests: each is answered as soon as it can be, so answers come in any order.

One request's failure is that request's answer, with its status as a parameter; only what is no message at all
ends the stream.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from inference_core.errors import Overloaded, TooLarge
from inference_core.wire import parse
from protos import open_inference_pb2 as oip

STATUS = "tandem_status"
# Beside the status: a parameter of the answer, or trailing metadata of a call.
REASON, REASON_KEY = "tandem_reason", "tandem-reason"
TOO_LARGE = "too_large"
Infer = Callable[[oip.ModelInferRequest, int], Awaitable[bytes]]
Refuse = Callable[[oip.ModelInferRequest, int], object]
Status = Callable[[BaseException], tuple[grpc.StatusCode, str]]
Context = grpc.aio.ServicerContext[Any, Any]


def wrapped(response: oip.ModelInferResponse) -> bytes:
    """A response as a message of a stream."""
    return oip.ModelStreamInferResponse(infer_response=response).SerializeToString()


class Stream:
    """Answers what comes on one bidirectional call, up to `limit` requests at a time."""

    def __init__(
        self,
        context: Context,
        infer: Infer,
        refuse: Refuse,
        status: Status,
        *,
        limit: int,
        on_received: Callable[[], object],
        on_sent: Callable[[], object],
    ) -> None:
        """`infer` answers one request of so many bytes, or raises; `refuse` is told of each that there was no
        room for; `status` says what an error is called.
        `on_received` and `on_sent` are told of each message."""
        self._context = context
        self._infer = infer
        self._refuse = refuse
        self._status = status
        self._limit = limit
        self._on_received = on_received
        self._on_sent = on_sent
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: deque[bytes] = deque()
        self._writing = False
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Return when the client has sent its last request, or `end` was called, and all have their answers.

        Raises `InvalidInput` for what is no message. Cancelling it cancels every request.
        """
        self._reader = asyncio.create_task(self._read(), name="stream")
        try:
            await asyncio.wait((self._reader,))
            if not self._reader.cancelled():
                self._reader.result()
            while self._tasks:
                await asyncio.wait(tuple(self._tasks))
        finally:
            for task in (self._reader, *self._tasks):
                task.cancel()

    def end(self) -> None:
        """Read no more; what has been read is answered still."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:
            self._on_received()
            request = parse(oip.ModelInferRequest, data)
            if len(self._tasks) + len(self._outbox) < self._limit:
                task = asyncio.create_task(self._answer(request, len(data)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(0)  # the answer goes first, then the next read
            else:
                self._refuse(request, len(data))
                full = Overloaded(
                    f"{self._limit} requests of this stream are being answered, that is the limit"
                )
                await self._send(self._refusal(request.id, full))
                await self._drain()

    async def _answer(self, request: oip.ModelInferRequest, size: int) -> None:
        try:
            answer = await self._infer(request, size)
        except Exception as error:  # noqa: BLE001 - a bug must cost one request, not the stream
            answer = self._refusal(request.id, error)
        await self._send(answer)

    def _refusal(self, request_id: str, error: Exception) -> bytes:
        """As Triton has it: the message, and the request's id in an answer that is empty otherwise."""
        code, text = self._status(error)
        answer = oip.ModelStreamInferResponse(error_message=text or code.name)
        answer.infer_response.id = request_id
        answer.infer_response.parameters[STATUS].string_param = code.name
        if isinstance(error, TooLarge):  # which is not the same as too many, but has the same status
            answer.infer_response.parameters[REASON].string_param = TOO_LARGE
        return answer.SerializeToString()

    async def _send(self, answer: bytes) -> None:
        """gRPC takes one message at a time: whoever writes goes on with what the others have left behind."""
        self._outbox.append(answer)
        if self._writing:
            return
        self._writing = True
        try:
            while self._outbox:
                await self._context.write(self._outbox.popleft())
                self._on_sent()
                self._room.set()
        finally:
            self._writing = False

    async def _drain(self) -> None:
        """Read no faster than the client takes its answers."""
        while len(self._outbox) >= self._limit:
            self._room.clear()
            await self._room.wait()
