"""The way up: one escalation, by one call, within its deadline, or a `CloudUnavailable`.

The only file of the node that calls out over gRPC. `CloudClient.infer` is, from the outside in: is there a
connection, does the breaker let us, one call with a deadline, is the answer one that can be used.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edge_node.breaker import Breaker
from edge_node.cloud import CloudAnswer, Query
from inference_core.errors import (
    BreakerOpen,
    CloudRefused,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
    InvalidInput,
)
from inference_core.tensors import DATATYPES, from_response, get_parameters, to_request
from protos import open_inference_pb2 as oip

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
# How long calls may wait for a connection that has just gone, as when the cloud lets an old one go. After
# that they do not wait any more until there has been one again.
CONNECTING_S = 0.02
_KEEPALIVE_MS = 20_000
_log = logging.getLogger(__name__)
_Ready = grpc.ChannelConnectivity

REFUSALS: dict[grpc.StatusCode, Callable[[str], CloudUnavailable]] = {
    grpc.StatusCode.OK: lambda text: CloudRefused(text, "invalid_answer"),
    grpc.StatusCode.UNAVAILABLE: CloudUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    # Calls are cancelled by the other side when it stops.
    grpc.StatusCode.CANCELLED: CloudUnreachable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: lambda text: CloudRefused(text, "overloaded"),
    grpc.StatusCode.FAILED_PRECONDITION: lambda text: CloudRefused(text, "version_mismatch"),
    grpc.StatusCode.NOT_FOUND: lambda text: CloudRefused(text, "model_missing"),
    grpc.StatusCode.UNIMPLEMENTED: lambda text: CloudRefused(text, "model_missing"),
    grpc.StatusCode.INVALID_ARGUMENT: lambda text: CloudRefused(text, "input_refused"),
    grpc.StatusCode.OUT_OF_RANGE: lambda text: CloudRefused(text, "input_refused"),
    grpc.StatusCode.UNAUTHENTICATED: lambda text: CloudRefused(text, "unauthorized"),
    grpc.StatusCode.PERMISSION_DENIED: lambda text: CloudRefused(text, "unauthorized"),
    grpc.StatusCode.INTERNAL: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.UNKNOWN: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.DATA_LOSS: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.ABORTED: lambda text: CloudRefused(text, "cloud_error"),
    grpc.StatusCode.ALREADY_EXISTS: lambda text: CloudRefused(text, "cloud_error"),
}

# Slowness and the cloud's own errors open the breaker. A refused connection costs nothing and is known
# without asking; a busy cloud, or one that finds a request too large, says so at once; a wrong version or
# input says nothing about the cloud's health.
_ALARMING = frozenset({"deadline", "cloud_error", "invalid_answer"})


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
    ) -> None:
        """`target` is `host:port` or a gRPC name. A call that was given less than `patience_s` seconds
        and got no answer does not count against the cloud. `on_connection` is told of each change."""
        self._target = target
        self._breaker = breaker
        self._patience_s = patience_s
        self._on_connection = on_connection
        self._redial_s = connect_timeout_s
        self._connected = False
        self._blink_ends: float | None = None
        self._options = _options(connect_timeout_s, max_message_bytes)
        self._keeper: asyncio.Task[None] | None = None
        self._dial()

    def start(self) -> None:
        """Connect, and stay connected, from now on."""
        self._keeper = asyncio.create_task(self._keep_connected(), name="cloud connection")

    async def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._channel.close()

    def check(self) -> None:
        """Raise `CloudUnreachable` without a connection in sight, `BreakerOpen` while the breaker is."""
        if self._channel.get_state() is _Ready.TRANSIENT_FAILURE:
            raise CloudUnreachable(f"no connection to {self._target}")
        if self._breaker.blocks(time.monotonic()):
            raise BreakerOpen(f"{self._target} has been failing and is left alone")

    async def infer(self, query: Query, timeout_s: float) -> CloudAnswer:
        """One call. Raises a `CloudUnavailable` that says why there is no answer."""
        deadline = time.monotonic() + timeout_s
        await self._connection(timeout_s)
        permit = self._breaker.allow(time.monotonic())
        if permit is None:
            raise BreakerOpen(f"{self._target} has been failing and is left alone")
        try:
            answer = await self._call(query, deadline - time.monotonic())
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

    async def _connection(self, timeout_s: float) -> None:
        """Return with a connection, or raise `CloudUnreachable` at once or, when it has just gone, after a
        blink."""
        state = self._channel.get_state()
        if state is not _Ready.READY:
            state = await self._after_a_blink(state, timeout_s)
        if state is not _Ready.READY:
            raise CloudUnreachable(f"no connection to {self._target}")
        self._blink_ends = None

    async def _after_a_blink(
        self, state: grpc.ChannelConnectivity, timeout_s: float
    ) -> grpc.ChannelConnectivity:
        """The state that connecting comes to within what is left of the blink."""
        channel, now = self._channel, time.monotonic()
        self._blink_ends = self._blink_ends or now + CONNECTING_S
        left = min(self._blink_ends - now, timeout_s)
        if left <= 0:
            return state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                while state in (_Ready.IDLE, _Ready.CONNECTING):
                    await channel.wait_for_state_change(state)
                    state = channel.get_state()
        return state

    async def _call(self, query: Query, timeout_s: float) -> CloudAnswer:
        request = to_request(query.model, query.version, query.inputs, query.parameters, query.id)
        try:
            data = await self._send(request, timeout_s)
            response = _parsed(data)
            logits = _usable(response, query)
        except CloudUnavailable as error:
            error.bytes_up = request.ByteSize()
            raise
        return CloudAnswer(logits, get_parameters(response.parameters), request.ByteSize(), len(data))

    async def _send(self, request: oip.ModelInferRequest, timeout_s: float) -> bytes:
        try:
            return await self._model_infer(request, timeout=max(timeout_s, 0))
        except grpc.aio.AioRpcError as error:
            raise REFUSALS[error.code()](f"{error.code().name}: {error.details()}") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CloudUnreachable("the connection was closed during the call") from None

    def _dial(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._target, options=self._options)
        # The generated stub would parse the answer where a failure is logged and swallowed.
        self._model_infer: grpc.aio.UnaryUnaryMultiCallable[oip.ModelInferRequest, bytes] = (
            self._channel.unary_unary(MODEL_INFER, request_serializer=oip.ModelInferRequest.SerializeToString)
        )
        self._dialled = time.monotonic()

    async def _keep_connected(self) -> None:
        """Follow the connection, log its changes, and dial afresh where gRPC would wait longer and longer."""
        while True:
            state = self._channel.get_state(try_to_connect=True)
            self._tell(state)
            redial = state is _Ready.TRANSIENT_FAILURE
            left = self._redial_s - (time.monotonic() - self._dialled)
            try:
                async with asyncio.timeout(max(left, 0.1) if redial else None):
                    await self._channel.wait_for_state_change(state)
            except TimeoutError:
                await self._channel.close()
                self._dial()

    def _tell(self, state: grpc.ChannelConnectivity) -> None:
        # Connecting is not news: an unreachable cloud swings between that and failure.
        connected = state is _Ready.READY
        if connected == self._connected or (not connected and state is not _Ready.TRANSIENT_FAILURE):
            return
        self._connected = connected
        self._on_connection(connected)
        if connected:
            _log.info("connected to the cloud at %s", self._target)
        else:
            _log.warning("lost the cloud at %s; answering alone until it is back", self._target)


def _options(connect_timeout_s: float, max_message_bytes: int) -> list[tuple[str, Any]]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 3000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # In spite of its name, the time that one attempt to connect is given.
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),
        ("grpc.dns_min_time_between_resolutions_ms", 500),
        ("grpc.client_idle_timeout_ms", 2**31 - 1),
        # A fresh channel must not inherit the back-off of the one it replaces.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _parsed(data: bytes) -> oip.ModelInferResponse:
    try:
        return oip.ModelInferResponse.FromString(data)
    except DecodeError as error:
        raise CloudRefused(f"the answer is no message of the protocol: {error}", "invalid_answer") from error


def _usable(response: oip.ModelInferResponse, query: Query) -> NDArray[Any]:
    """The expected output of `response`; `CloudRefused` when it is not there or makes no sense."""
    try:
        outputs = from_response(response)
    except InvalidInput as error:
        raise CloudRefused(str(error), "invalid_answer") from error
    logits = outputs.get(query.expect.name)
    wanted = DATATYPES[query.expect.datatype]
    if logits is None or logits.dtype != wanted or logits.shape != (1, *query.expect.shape):
        raise CloudRefused(f"the answer holds no {wanted} output {query.expect.name!r}", "invalid_answer")
    if not np.isfinite(logits).all():
        raise CloudRefused("the answer holds a NaN or an infinity", "invalid_answer")
    if response.model_version not in ("", query.version):
        raise CloudRefused(f"version {response.model_version} answered", "version_mismatch")
    return logits
