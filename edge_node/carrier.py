"""Carries a query to one cloud and its answer back: by a message on a kept stream, or by a call where the
server has no streams.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from secrets import token_bytes

import grpc

from edge_node.cloud import Attempt, CloudAnswer, Query
from edge_node.connection import Connection, unless_cancelled
from edge_node.envelope import envelope
from edge_node.reply import failure, parsed, refusal, usable
from edge_node.stream import STREAM_INFER, Stream, StreamEnded
from inference_core.errors import CloudRefused, CloudUnavailable, CloudUnreachable
from inference_core.tensors import to_request
from protos import open_inference_pb2 as oip

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"
# A message over this many bytes goes on a stream for such, so that small ones need not wait behind it.
LARGE_BYTES = 32 << 10
# A stream lives on its connection. The cloud lets a connection go by and by, with a grace of ten seconds, so
# that edges find new replicas: a stream is given up well before that grace is over.
STREAM_AGE_S = 5.0
_log = logging.getLogger(__name__)

# A stream that ends like this before its first answer says nothing about streams: the other side stops, or
# one message was over its limit.
_PASSING = frozenset({grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED})
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})

Admit = Callable[[Attempt, int], object]


class Carrier:
    """The messages of one connection. Lives on one event loop."""

    def __init__(
        self,
        connection: Connection,
        *,
        max_message_bytes: int,
        admit: Admit,
        on_late: Callable[[], object],
        streams: bool = True,
    ) -> None:
        """`admit` is told of each message before it goes, what it is for and its bytes; what it raises keeps
        the message here. `on_late` is told of each answer on a stream that came after its deadline. Without
        `streams`, every call is unary."""
        self._connection = connection
        self._max_bytes = max_message_bytes
        self._admit = admit
        self._on_late = on_late
        self._streams = streams
        self._unary_only = not streams
        self._told_unary = False
        self._kept: dict[bool, tuple[Stream, float]] = {}
        self._open: list[Stream] = []
        self._heard_at = 0.0

    @property
    def heard_at(self) -> float:
        """The monotonic time at which anything was last heard from the cloud."""
        return max(self._heard_at, *(stream.heard_at for stream in self._open), 0.0)

    def renew(self) -> None:
        """The connection may be another one: what comes from now on goes there."""
        for stream, _ in self._kept.values():
            stream.retire()
        self._kept.clear()
        self._unary_only = not self._streams

    async def close(self) -> None:
        """End every stream; whoever waits on one gets `CloudUnreachable`."""
        for stream in self._open:
            await stream.close()

    async def ask(self, query: Query, deadline: float, kind: Attempt) -> CloudAnswer:
        """The answer to `query` by the monotonic time `deadline`, else `CloudUnavailable`.

        By stream where the server has them. A request whose stream ends, for whatever reason but the loss
        of the connection, is asked again by a call, which has a status of its own.
        """
        if not self._unary_only:
            try:
                return await self._by_stream(query, deadline, kind)
            except StreamEnded as end:
                if end.code in _LOST:
                    lost = refusal(end.code, end.text)
                    lost.bytes_up = end.bytes_up
                    raise lost from end
                if not end.answered and end.code not in _PASSING:
                    self._do_without_streams(end)
                kind = Attempt.RETRY if end.bytes_up else kind
            await self._connection.ready(deadline - time.monotonic())
        return await self._by_call(query, deadline, kind)

    async def live(self, padding: int, timeout_s: float) -> int:
        """A sign of life with `padding` bytes that mean nothing; the bytes of the answer. Any answer will do.
        Raises `CloudUnavailable`."""
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = self._connection.channel.unary_unary(SERVER_LIVE)
        message = _padding(padding)
        self._admit(Attempt.PROBE, len(message))
        try:
            size = len(await call(message, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() in _LOST | {grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise failure(error) from error
            size = 0
        except asyncio.CancelledError:
            unless_cancelled()
            raise CloudUnreachable("the connection was closed during the call") from None
        self._heard_at = time.monotonic()
        return size

    async def _by_stream(self, query: Query, deadline: float, kind: Attempt) -> CloudAnswer:
        started = time.monotonic()
        large = sum(array.nbytes for array in query.inputs.values()) > LARGE_BYTES
        stream = self._stream(large, started)
        left_s = deadline - started
        key = stream.next_key(query.id)
        message = envelope(query, key, left_s)
        self._fits(message)
        self._admit(kind, len(message))
        response, size = await stream.ask(key, message, left_s)
        return _answer(response, query, len(message), size, time.monotonic() - started)

    async def _by_call(self, query: Query, deadline: float, kind: Attempt) -> CloudAnswer:
        started = time.monotonic()
        message = to_request(
            query.model, query.version, query.inputs, query.parameters, query.id
        ).SerializeToString()
        self._fits(message)
        self._admit(kind, len(message))
        try:
            data = await self._call(message, max(deadline - started, 0.0))
            self._heard_at = time.monotonic()
            return _answer(parsed(data), query, len(message), len(data), self._heard_at - started)
        except CloudUnavailable as error:
            error.bytes_up = len(message)
            raise

    def _fits(self, message: bytes) -> None:
        """gRPC would end the whole stream for it."""
        if len(message) > self._max_bytes:
            raise CloudRefused(
                f"the message is {len(message)} bytes, the limit is {self._max_bytes}", "too_large"
            )

    async def _call(self, message: bytes, timeout_s: float) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connection.channel.unary_unary(
            MODEL_INFER
        )
        try:
            return await call(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        except asyncio.CancelledError:
            unless_cancelled()
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
        self._heard_at = self.heard_at
        self._open = [stream, *(other for other in self._open if not other.ended)]
        self._kept[large] = stream, now
        return stream

    def _do_without_streams(self, end: StreamEnded) -> None:
        self._unary_only = True
        if not self._told_unary:
            self._told_unary = True
            _log.info("%s answers no streams, it is asked by calls: %s", self._connection.target, end)


def _answer(
    response: oip.ModelInferResponse, query: Query, bytes_up: int, bytes_down: int, seconds: float
) -> CloudAnswer:
    try:
        logits, parameters = usable(response, query)
    except CloudUnavailable as error:
        error.bytes_up = bytes_up
        raise
    return CloudAnswer(logits, parameters, bytes_up, bytes_down, seconds)


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
