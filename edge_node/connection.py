"""The connection to the cloud: kept up in the background, and told of when it comes and goes."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from edge_node.cloud_tls import CloudTls
from inference_core.errors import CloudUnreachable

# How long calls may wait for a connection that has just gone, as when the cloud lets an old one go. After
# that they do not wait any more until there has been one again.
CONNECTING_S = 0.02
_KEEPALIVE_MS = 20_000
# What an answer may take before the silence speaks against the connection, and what the attempt to make
# another one beside it is given, as a share of that for any attempt.
_DOUBT_S = 1.0
_BESIDE = 0.25
_PAUSE_S = 0.3  # between two such attempts
# The cloud lets a connection go after 30 s, give or take a tenth, so that edges find new replicas: sooner
# than that another one is made beside it, and nobody waits for it.
_RENEW_S = 25.0
# Calls in flight may end on a connection that is given up.
_GRACE_S = 10.0
_HEALTH = "/grpc.health.v1.Health/Check"
_REASON_S = 0.5
_OF_TLS = ("Secure read", "andshake", "Verification", "SSL", "TSI")
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
        tls: CloudTls | None = None,
    ) -> None:
        """`target` is `host:port` or a gRPC name. `on_connection` is told when there begins or ends to be
        one; `on_change` of everything that may have put another one in its place. It is plain without
        `tls`."""
        self.target = target
        self._on_connection = on_connection
        self._on_change = on_change
        self._redial_s = connect_timeout_s
        self._connected: bool | None = None  # not tried yet
        self._blink_ends: float | None = None
        self._options = _options(connect_timeout_s, max_message_bytes)
        self._tls = tls
        if tls is not None:
            self._options += tls.options
            tls.tell(self.renew)
        self._keeper: asyncio.Task[None] | None = None
        self._waiting: asyncio.Timeout | None = None
        self._why = ""  # another connection is wanted
        self._leaving: set[asyncio.Task[None]] = set()
        self.channel, self._dialled = self._dial(), time.monotonic()

    def start(self) -> None:
        """Connect, and stay connected, from now on."""
        self._keeper = asyncio.create_task(self._keep_connected(), name="cloud connection")

    async def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        for channel in self._leaving:
            channel.cancel()
        await self.channel.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self.channel.get_state() is _Ready.READY

    def check(self) -> None:
        """Raise `CloudUnreachable` without a connection in sight."""
        if self.channel.get_state() is _Ready.TRANSIENT_FAILURE:
            raise self._unreachable()

    def doubt(self, heard_at: float) -> None:
        """A call has had no answer, and none has come since the monotonic time `heard_at`: when that is long
        ago, have another connection made, and take the place of this one.

        After packets were lost TCP waits longer and longer before it sends them again, and a path that has
        forgotten the connection never says so; a new one goes through as soon as anything does.
        """
        now = time.monotonic()
        if not self._why and now - max(heard_at, self._dialled) > _DOUBT_S:
            self._want_another("nothing was heard for long")

    def renew(self) -> None:
        """Have another connection made as soon as may be, and take the place of this one: the credentials are
        others now. What is in flight ends on the old one."""
        self._want_another("there are other credentials")

    def _want_another(self, why: str) -> None:
        self._why = why
        # Where the wait has just run out, another one is made anyway.
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

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

    def _dial(self) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(self.target, options=self._options)
        return grpc.aio.secure_channel(self.target, self._tls.credentials, options=self._options)

    def _take(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._dialled, self._why = time.monotonic(), ""
        self._on_change()

    async def _keep_connected(self) -> None:
        """Follow the connection, log its changes, and dial afresh where gRPC would wait longer and longer."""
        while True:
            state = self.channel.get_state(try_to_connect=True)
            await self._tell(state)
            redial = state is _Ready.TRANSIENT_FAILURE
            most_s = self._redial_s if redial else _RENEW_S
            left = _PAUSE_S if self._why else most_s - (time.monotonic() - self._dialled)
            try:
                async with asyncio.timeout(max(left, 0.1)) as self._waiting:
                    await self.channel.wait_for_state_change(state)
                self._on_change()
            except TimeoutError:
                self._waiting = None
                if redial:
                    self._replace(self._dial())
                else:
                    await self._dial_beside()
            self._waiting = None

    async def _dial_beside(self) -> None:
        """Another connection in the place of the present one, if it can be made soon."""
        channel = self._dial()
        try:
            async with asyncio.timeout(self._redial_s * _BESIDE):
                await channel.channel_ready()
        except TimeoutError:
            if not self._why:
                self._dialled = time.monotonic()
            await channel.close()
        except BaseException:
            await channel.close()
            raise
        else:
            if self._why:
                _log.info("connected anew to the cloud at %s: %s", self.target, self._why)
            self._replace(channel)

    def _replace(self, channel: grpc.aio.Channel) -> None:
        """Go on with `channel`; calls in flight end on the old one, if they do so soon."""
        leaving = asyncio.create_task(self.channel.close(_GRACE_S), name="cloud connection, the old one")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        self._take(channel)

    async def _tell(self, state: grpc.ChannelConnectivity) -> None:
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
                "cannot reach the cloud at %s: %s; answering alone until it is there",
                self.target, await self._reason(),
            )  # fmt: skip
        else:
            _log.warning("lost the cloud at %s; answering alone until it is back", self.target)

    async def _reason(self) -> str:
        """Why there is no connection, in the words of TLS where it is that."""
        if self._tls is None:
            return "nobody answers there, or the name is not known"
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(_HEALTH)
        try:
            await check(b"", timeout=_REASON_S)
        except grpc.aio.AioRpcError as error:
            words = (error.details() or "").rpartition("last error: ")[2]
            if any(word in words for word in _OF_TLS):
                return f"a certificate is refused, by us or by the cloud: {words}"
        return "nobody answers there, the name is not known, or a certificate is refused"


def unless_cancelled() -> None:
    """gRPC ends a call by cancellation when its connection is closed: raise that on only where somebody has
    cancelled the task."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _options(connect_timeout_s: float, max_message_bytes: int) -> list[tuple[str, Any]]:
    # By its health service a cloud says that it stops before it does; one without is taken for healthy.
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
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
