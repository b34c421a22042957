"""One kept stream to the cloud: many requests on their way at once, each with its own answer.

Requests go out in the order they come; answers come back in any order and find their request by its id, which
is given here and never twice on a stream.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from edge_node.reply import stated
from inference_core.errors import CloudRefused, CloudUnavailable, DeadlineExceeded, InvalidInput
from inference_core.wire import parse
from protos import open_inference_pb2 as oip

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
Call = grpc.aio.StreamStreamCall[bytes, bytes]


class StreamEnded(Exception):
    """The stream ended with this status before it brought the answer. `answered`: it had brought others;
    `bytes_up`: what had been sent of this request."""

    def __init__(self, code: grpc.StatusCode, text: str, *, answered: bool) -> None:
        super().__init__(f"the stream ended with {code.name}: {text}")
        self.code = code
        self.text = text
        self.answered = answered
        self.bytes_up = 0


class _Asked:
    """A request on its way. `sent` once it has been handed to the connection."""

    __slots__ = ("future", "message", "sent")

    def __init__(self, message: bytes, future: "asyncio.Future[_Answer]") -> None:
        self.message = message
        self.future = future
        self.sent = False


_Answer = tuple[oip.ModelInferResponse, int]


class Stream:
    """A bidirectional call and the requests that wait on it. Lives on one event loop."""

    def __init__(self, call: Call, on_late: Callable[[], object]) -> None:
        """`on_late` is told of each answer that nobody waits for any more."""
        self._call = call
        self._on_late = on_late
        self._ids = itertools.count(1)
        self._asked: dict[str, _Asked] = {}
        self._outbox: deque[_Asked] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._retired = False
        self._answered = False
        self._end: tuple[grpc.StatusCode, str] | None = None
        self.heard_at = 0.0  # the monotonic time of the last answer
        self._writer = asyncio.create_task(self._write(), name="cloud stream, up")
        self._reader = asyncio.create_task(self._read(), name="cloud stream, down")

    def next_key(self, own: str) -> str:
        """An id that no other request on this stream has; `own` is the caller's, for the logs over there."""
        return f"{next(self._ids)}/{own}"

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked here any more."""
        return self._end is not None

    async def ask(self, key: str, message: bytes, timeout_s: float) -> _Answer:
        """Send the request `message`, which has the id `key`, and wait for its answer: that and its bytes.

        Raises `CloudUnavailable` when the answer says so, `DeadlineExceeded` after `timeout_s` seconds, and
        `StreamEnded`; each with `bytes_up`, 0 if nothing was sent yet. Cancelling it disturbs no one.
        """
        if self._end is not None:
            raise StreamEnded(*self._end, answered=self._answered)
        loop = asyncio.get_running_loop()
        asked = _Asked(message, loop.create_future())
        self._asked[key] = asked
        self._outbox.append(asked)
        self._nudge()
        timer = loop.call_later(max(timeout_s, 0.0), _expire, asked)
        try:
            return await asked.future
        except (CloudUnavailable, StreamEnded) as error:
            error.bytes_up = len(message) if asked.sent else 0
            raise
        finally:
            timer.cancel()
            del self._asked[key]
            if self._retired and not self._asked:
                self._nudge()

    def retire(self) -> None:
        """Take no more requests; end when the last answer has come."""
        self._retired = True
        if not self._asked:
            self._nudge()

    async def close(self) -> None:
        """End now; whoever waits gets a `StreamEnded`."""
        self._call.cancel()
        await asyncio.wait((self._reader, self._writer))

    def _nudge(self) -> None:
        """Have the writer look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _write(self) -> None:
        """The one writer: gRPC takes one message at a time, and ends the call when that is cancelled."""
        # A call that ends says why where it is read.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while True:
                while self._outbox:
                    asked = self._outbox.popleft()
                    if asked.future.done():  # too late, or gone, before the link had room for it
                        continue
                    asked.sent = True
                    await self._call.write(asked.message)
                if self._retired and not self._asked:
                    await self._call.done_writing()
                    return
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake

    async def _read(self) -> None:
        code, text = grpc.StatusCode.OK, "no more answers"
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._deliver(data)
                await asyncio.sleep(0)  # who waited goes first, then the next read
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details() or ""
        except asyncio.CancelledError:
            code, text = grpc.StatusCode.CANCELLED, "the connection was closed during the call"
        except InvalidInput as error:
            text = f"the answer: {error}"
            self._fail(lambda: CloudRefused(text, "invalid_answer"))
            code = grpc.StatusCode.INTERNAL
        finally:
            self._end = code, text
            self._fail(lambda: StreamEnded(code, text, answered=self._answered))
            self._call.cancel()
            self._writer.cancel()

    def _deliver(self, data: Any) -> None:
        self.heard_at = time.monotonic()
        response = parse(oip.ModelStreamInferResponse, data)
        key, failed = response.infer_response.id, bool(response.error_message)
        asked = self._asked.get(key)
        if asked is not None and not asked.future.done():
            self._answered = True
            if failed:
                asked.future.set_exception(stated(response))
            else:
                asked.future.set_result((response.infer_response, len(data)))
        elif failed and not key:
            # It is somebody's; a server that does not say whose can be trusted with none of them.
            self._fail(lambda: stated(response))
        else:
            self._on_late()

    def _fail(self, make: Callable[[], Exception]) -> None:
        """Each gets an error of its own: raising one marks it with where."""
        for asked in self._asked.values():
            if not asked.future.done():
                asked.future.set_exception(make())


def _expire(asked: _Asked) -> None:
    if not asked.future.done():
        asked.future.set_exception(DeadlineExceeded("no answer on the stream in time"))
