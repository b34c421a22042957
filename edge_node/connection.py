"""The connection to the cloud: kept up in the background, and told of when it comes and goes."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from inference_core.errors import CloudUnreachable

# How long calls may wait for a connection that has just gone, as when the cloud lets an old one go. After
# that they do not wait any more until there has been one again.
CONNECTING_S = 0.02
_KEEPALIVE_MS = 20_000
_log = logging.getLogger(__name__)
_Ready = grpc.ChannelConnectivity


class Connection:
    """A gRPC channel that reconnects by itself. `channel` is another one after a fresh dial."""

    def __init__(
        self,
        target: str,
        *,
        connect_timeout_s: float,
        max_message_bytes: int,
        on_connection: Callable[[bool], object],
        on_change: Callable[[], object],
    ) -> None:
        """`target` is `host:port` or a gRPC name. `on_connection` is told when there begins or ends to be
        one; `on_change` of everything that may have put another one in its place."""
        self.target = target
        self._on_connection = on_connection
        self._on_change = on_change
        self._redial_s = connect_timeout_s
        self._connected: bool | None = None  # not tried yet
        self._blink_ends: float | None = None
        self._options = _options(connect_timeout_s, max_message_bytes)
        self._keeper: asyncio.Task[None] | None = None
        self.channel: grpc.aio.Channel
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
        await self.channel.close()

    def check(self) -> None:
        """Raise `CloudUnreachable` without a connection in sight."""
        if self.channel.get_state() is _Ready.TRANSIENT_FAILURE:
            raise self._unreachable()

    async def ready(self, timeout_s: float) -> None:
        """Return with a connection, or raise `CloudUnreachable` at once or, when it has just gone, after a
        blink."""
        state = self.channel.get_state()
        if state is not _Ready.READY:
            state = await self._after_a_blink(state, timeout_s)
        if state is not _Ready.READY:
            raise self._unreachable()
        self._blink_ends = None

    def _unreachable(self) -> CloudUnreachable:
        return CloudUnreachable(f"no connection to {self.target}")

    async def _after_a_blink(
        self, state: grpc.ChannelConnectivity, timeout_s: float
    ) -> grpc.ChannelConnectivity:
        """The state that connecting comes to within what is left of the blink."""
        channel, now = self.channel, time.monotonic()
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

    def _dial(self) -> None:
        self.channel = grpc.aio.insecure_channel(self.target, options=self._options)
        self._dialled = time.monotonic()
        self._on_change()

    async def _keep_connected(self) -> None:
        """Follow the connection, log its changes, and dial afresh where gRPC would wait longer and longer."""
        while True:
            state = self.channel.get_state(try_to_connect=True)
            self._tell(state)
            redial = state is _Ready.TRANSIENT_FAILURE
            left = self._redial_s - (time.monotonic() - self._dialled)
            try:
                async with asyncio.timeout(max(left, 0.1) if redial else None):
                    await self.channel.wait_for_state_change(state)
                self._on_change()
            except TimeoutError:
                await self.channel.close()
                self._dial()

    def _tell(self, state: grpc.ChannelConnectivity) -> None:
        # Connecting is not news: an unreachable cloud swings between that and failure.
        connected = state is _Ready.READY
        if connected == self._connected or (not connected and state is not _Ready.TRANSIENT_FAILURE):
            return
        before, self._connected = self._connected, connected
        self._on_connection(connected)
        if connected:
            _log.info("connected to the cloud at %s", self.target)
        elif before is None:
            _log.warning(
                "cannot reach the cloud at %s: nobody answers there, or the name is not known; "
                "answering alone until it is there", self.target,
            )  # fmt: skip
        else:
            _log.warning("lost the cloud at %s; answering alone until it is back", self.target)


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
