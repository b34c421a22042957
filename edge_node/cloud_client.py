"""The way up: one escalation, by one message on a kept stream, within its deadline, or a `CloudUnavailable`.

`CloudClient.infer` is, from the outside in: is there a connection, does the breaker let us, one message with
what is left of the deadline, is the answer one that can be used. Servers without streams are asked by unary
calls.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from secrets import token_bytes

import grpc

from edge_node.breaker import Breaker, State
from edge_node.cloud import CloudAnswer, Query
from edge_node.connection import Connection
from edge_node.envelope import envelope
from edge_node.reply import parsed, refusal, usable
from edge_node.stream import STREAM_INFER, Stream, StreamEnded
from inference_core.errors import (
    BreakerOpen,
    CloudRefused,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
)
from inference_core.tensors import get_parameters, to_request
from protos import open_inference_pb2 as oip

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"
# A message over this many bytes goes on a stream for such, so that small ones need not wait behind it.
LARGE_BYTES = 32 << 10
# A stream lives on its connection. The cloud lets a connection go by and by, with a grace of ten seconds, so
# that edges find new replicas: a stream is given up well before that grace is over.
STREAM_AGE_S = 5.0
_log = logging.getLogger(__name__)

# Slowness and the cloud's own errors open the breaker. A refused connection costs nothing and is known
# without asking; a busy cloud, or one that finds a request too large, says so at once; a wrong version or
# input says nothing about the cloud's health.
_ALARMING = frozenset({"deadline", "cloud_error", "invalid_answer"})
# A stream that ends like this before its first answer says nothing about streams: the other side stops, or
# one message was over its limit.
_PASSING = frozenset({grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED})
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def _ignore() -> None:
    """Nobody wants to know."""


class CloudClient:
    """A cloud behind a gRPC channel that reconnects by itself, in the background."""

    def __init__(
        self,
        target: str,
        breaker: Breaker,
        *,
        connect_timeout_s: float,
        patience_s: float,
        max_message_bytes: int,
        on_connection: Callable[[bool], object],
        on_late: Callable[[], object] = _ignore,
        streams: bool = True,
    ) -> None:
        """`target` is `host:port` or a gRPC name. A call that was given less than `patience_s` seconds
        and got no answer does not count against the cloud. `on_connection` is told of each change, `on_late`
        of each answer on a stream that came after its deadline. Without `streams`, every call is unary."""
        self._breaker = breaker
        self._patience_s = patience_s
        self._on_late = on_late
        self._max_bytes = max_message_bytes
        self._streams = streams
        self._unary_only = not streams
        self._told_unary = False
        self._kept: dict[bool, tuple[Stream, float]] = {}
        self._open: list[Stream] = []
        self._connection = Connection(
            target,
            connect_timeout_s=connect_timeout_s,
            max_message_bytes=max_message_bytes,
            on_connection=on_connection,
            on_change=self._renew,
        )

    def start(self) -> None:
        """Connect, and stay connected, from now on."""
        self._connection.start()

    async def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        for stream in self._open:
            await stream.close()
        await self._connection.close()

    def check(self) -> None:
        """Raise `CloudUnreachable` without a connection in sight, `BreakerOpen` while the breaker is."""
        self._connection.check()
        if self._breaker.blocks(time.monotonic()):
            raise self._left_alone()

    async def infer(self, query: Query, timeout_s: float) -> CloudAnswer:
        """One request. Raises a `CloudUnavailable` that says why there is no answer."""
        deadline = time.monotonic() + timeout_s
        await self._connection.ready(timeout_s)
        permit = self._breaker.allow(time.monotonic())
        if permit is None:
            raise self._left_alone()
        try:
            answer = await self._ask(query, deadline)
        except CloudUnavailable as error:
            # One impatient device must not close the way for the others.
            impatient = isinstance(error, DeadlineExceeded) and timeout_s < self._patience_s
            if error.reason in _ALARMING and not impatient:
                self._breaker.failure(permit, time.monotonic())
            else:
                self._breaker.abandon(permit)
            raise
        except BaseException:
            self._breaker.abandon(permit)
            raise
        self._breaker.success(permit)
        return answer

    async def probe(self, padding: int, timeout_s: float) -> int:
        """A sign of life with `padding` bytes that mean nothing; the bytes of the answer. Any answer will do.
        Raises `CloudUnavailable`. In the breaker's half-open state it is the call that tries."""
        await self._connection.ready(timeout_s)
        permit = self._breaker.allow(time.monotonic())
        if permit is None:
            raise self._left_alone()
        trying = self._breaker.state is State.HALF_OPEN
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = self._connection.channel.unary_unary(SERVER_LIVE)
        try:
            size = len(await call(_padding(padding), timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() in _LOST | {grpc.StatusCode.DEADLINE_EXCEEDED}:
                if trying:
                    self._breaker.failure(permit, time.monotonic())
                raise refusal(error.code(), error.details() or "") from error
            size = 0
        except asyncio.CancelledError:
            self._breaker.abandon(permit)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CloudUnreachable("the connection was closed during the call") from None
        if trying:
            self._breaker.success(permit)
        return size

    def _left_alone(self) -> BreakerOpen:
        return BreakerOpen(f"{self._connection.target} has been failing and is left alone")

    async def _ask(self, query: Query, deadline: float) -> CloudAnswer:
        """By stream where the server has them. A request whose stream ends, for whatever reason but the loss
        of the connection, is asked again by a call, which has a status of its own."""
        if not self._unary_only:
            try:
                return await self._by_stream(query, deadline)
            except StreamEnded as end:
                if end.code in _LOST:
                    lost = refusal(end.code, end.text)
                    lost.bytes_up = end.bytes_up
                    raise lost from end
                if not end.answered and end.code not in _PASSING:
                    self._do_without_streams(end)
            await self._connection.ready(deadline - time.monotonic())
        return await self._by_call(query, deadline)

    async def _by_stream(self, query: Query, deadline: float) -> CloudAnswer:
        started = time.monotonic()
        large = sum(array.nbytes for array in query.inputs.values()) > LARGE_BYTES
        stream = self._stream(large, started)
        left_s = deadline - started
        key = stream.next_key(query.id)
        message = envelope(query, key, left_s)
        self._fits(message)
        response, size = await stream.ask(key, message, left_s)
        return _answer(response, query, len(message), size, time.monotonic() - started)

    async def _by_call(self, query: Query, deadline: float) -> CloudAnswer:
        started = time.monotonic()
        message = to_request(
            query.model, query.version, query.inputs, query.parameters, query.id
        ).SerializeToString()
        self._fits(message)
        try:
            data = await self._call(message, max(deadline - started, 0.0))
            seconds = time.monotonic() - started
            return _answer(parsed(data), query, len(message), len(data), seconds)
        except CloudUnavailable as error:
            error.bytes_up = len(message)
            raise

    def _fits(self, message: bytes) -> None:
        """gRPC would end the whole stream for it."""
        if len(message) > self._max_bytes:
            raise CloudRefused(
                f"the message is {len(message)} bytes, the limit is {self._max_bytes}", "overloaded"
            )

    async def _call(self, message: bytes, timeout_s: float) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connection.channel.unary_unary(
            MODEL_INFER
        )
        try:
            return await call(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise refusal(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CloudUnreachable("the connection was closed during the call") from None

    def _stream(self, large: bool, now: float) -> Stream:
        stream, opened = self._kept.get(large, (None, now))
        if stream is not None and not stream.ended and now - opened < STREAM_AGE_S:
            return stream
        if stream is not None:
            stream.retire()
        call: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        call = self._connection.channel.stream_stream(STREAM_INFER)
        stream = Stream(call(), self._on_late)
        self._open = [stream, *(other for other in self._open if not other.ended)]
        self._kept[large] = stream, now
        return stream

    def _renew(self) -> None:
        """The connection may be another one: what comes from now on goes there."""
        for stream, _ in self._kept.values():
            stream.retire()
        self._kept.clear()
        self._unary_only = not self._streams

    def _do_without_streams(self, end: StreamEnded) -> None:
        self._unary_only = True
        if not self._told_unary:
            self._told_unary = True
            _log.info("%s answers no streams, it is asked by calls: %s", self._connection.target, end)


def _answer(
    response: oip.ModelInferResponse, query: Query, bytes_up: int, bytes_down: int, seconds: float
) -> CloudAnswer:
    try:
        logits = usable(response, query)
    except CloudUnavailable as error:
        error.bytes_up = bytes_up
        raise
    return CloudAnswer(logits, get_parameters(response.parameters), bytes_up, bytes_down, seconds)


def _padding(size: int) -> bytes:
    """A ServerLive request with a field that nobody knows, of `size` random bytes: readers of protobuf skip
    such."""
    if not size:
        return b""
    length = bytearray()
    left = size
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    return b"\x7a" + bytes(length) + bytes([left]) + token_bytes(size)  # field 15, of bytes
