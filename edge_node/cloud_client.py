"""One cloud: asked where that makes sense, and judged by what comes of it.

`CloudClient.infer` is, from the outside in: is there a connection, does the breaker let us, does the throttle
let us, one message with what is left of the deadline, is the answer one that can be used.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable

from edge_node.breaker import Breaker, Permit
from edge_node.carrier import Admit, Carrier
from edge_node.cloud import Attempt, CloudAnswer, Query
from edge_node.cloud_tls import CloudTls
from edge_node.connection import Connection
from edge_node.throttle import Throttle
from inference_core.errors import (
    BreakerOpen,
    CloudRefused,
    CloudUnavailable,
    DeadlineExceeded,
    Throttled,
)

_log = logging.getLogger(__name__)
# Slowness and the cloud's own errors open the breaker. A refused connection costs nothing and is known
# without asking; a busy cloud, or one that finds a request too large, says so at once; a wrong version or
# input says nothing about the cloud's health.
_ALARMING = frozenset({"deadline", "cloud_error", "invalid_answer"})


def _ignore(*_: object) -> None:
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
        on_throttled: Callable[[], object] = _ignore,
        admit: Admit = _ignore,
        throttle: Throttle | None = None,
        streams: bool = True,
        tls: CloudTls | None = None,
    ) -> None:
        """`target` is `host:port` or a gRPC name. A trial waits `patience_s` seconds for its answer.
        `on_connection` is told of each change, `on_late` of each answer on a stream that came after its
        deadline, `on_throttled` of each request that the throttle dropped. `admit` is told of each message
        before it goes, and may keep it here. Without `streams`, every call is unary. Without
        `tls`, the connection is plain."""
        self.target = target
        self._breaker = breaker
        self._patience_s = patience_s
        self._admit = admit
        self._on_throttled = on_throttled
        self._throttle = throttle or Throttle(random.random)
        self._trial: asyncio.Task[None] | None = None
        self._turned_away = False
        self._connection = Connection(
            target,
            connect_timeout_s=connect_timeout_s,
            max_message_bytes=max_message_bytes,
            on_connection=on_connection,
            on_change=self._renew,
            tls=tls,
        )
        self._carrier = Carrier(
            self._connection,
            max_message_bytes=max_message_bytes,
            admit=admit,
            on_late=on_late,
            streams=streams,
        )

    @property
    def reachable(self) -> bool:
        """Whether there is a connection, and the cloud is not left alone."""
        return self._connection.connected and not self._breaker.blocks(self._patience_s)

    def uplink(self, nbytes: int) -> Connection:
        """The connection, for a message of so many bytes that is no escalation. Raises what `admit` does."""
        self._admit(Attempt.SAMPLE, nbytes)
        return self._connection

    def start(self) -> None:
        """Connect, and stay connected, from now on."""
        self._connection.start()

    async def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        if self._trial is not None:
            self._trial.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._trial
        await self._carrier.close()
        await self._connection.close()

    def check(self, timeout_s: float) -> None:
        """Raise `CloudUnreachable` without a connection in sight, `BreakerOpen` while the breaker leaves out
        calls that can wait `timeout_s`."""
        self._connection.check()
        if self._breaker.blocks(timeout_s):
            raise self._left_alone()

    def due(self, timeout_s: float) -> bool:
        """Whether the breaker leaves such a call out, and it is time to find out if that is still right."""
        return self._breaker.blocks(timeout_s) and self._breaker.due(time.monotonic())

    async def infer(self, query: Query, timeout_s: float, kind: Attempt = Attempt.FIRST) -> CloudAnswer:
        """One request. Raises a `CloudUnavailable` that says why there is no answer."""
        await self._connection.ready(timeout_s)
        permit = self._breaker.allow(timeout_s)
        if permit is None:
            raise self._left_alone()
        if not self._throttle.allow(time.monotonic()):
            self._breaker.abandon(permit)
            self._on_throttled()
            raise Throttled(f"{self.target} has been turning many down")
        return await self._ask(query, permit, timeout_s, kind)

    def find_out(self, query: Query) -> None:
        """Send `query` in the background, where a trial is due: only the breaker waits for the answer."""
        permit = self._breaker.trial(time.monotonic())
        if permit is not None:
            self._trial = asyncio.create_task(self._try(query, permit), name="trial of the cloud")

    async def probe(self, padding: int, timeout_s: float) -> int:
        """A sign of life with `padding` bytes that mean nothing; the bytes of the answer. Any answer will do.
        Raises `CloudUnavailable`. Where a trial is due it is the call that tries."""
        await self._connection.ready(timeout_s)
        began = time.monotonic()
        permit = self._breaker.trial(began)
        if permit is None and self._breaker.blocks(self._patience_s):
            raise self._left_alone()
        try:
            size = await self._carrier.live(padding, timeout_s)
        except DeadlineExceeded:
            self._connection.doubt(self._carrier.heard_at)
            if permit is not None:
                self._breaker.failure(permit, timeout_s, time.monotonic())
            raise
        except BaseException:
            if permit is not None:
                self._breaker.abandon(permit)
            raise
        if permit is not None:
            now = time.monotonic()
            self._breaker.success(permit, now - began, now)
        return size

    def _renew(self) -> None:
        self._carrier.renew()
        self._breaker.hurry(time.monotonic())

    async def _try(self, query: Query, permit: Permit) -> None:
        try:
            await self._connection.ready(self._patience_s)
        except BaseException as error:
            self._breaker.abandon(permit)
            if not isinstance(error, CloudUnavailable):
                raise
            return
        # What came of it is the breaker's to know.
        with contextlib.suppress(CloudUnavailable):
            await self._ask(query, permit, self._patience_s, Attempt.TRIAL)

    async def _ask(self, query: Query, permit: Permit, timeout_s: float, kind: Attempt) -> CloudAnswer:
        began = time.monotonic()
        try:
            answer = await self._carrier.ask(query, began + timeout_s, kind)
        except CloudUnavailable as error:
            self._failed(error, permit, began, timeout_s)
            raise
        except BaseException:
            self._breaker.abandon(permit)
            raise
        now = time.monotonic()
        self._breaker.success(permit, now - began, now)
        self._throttle.told(now, accepted=True)
        self._turned_away = False
        return answer

    def _failed(self, error: CloudUnavailable, permit: Permit, began: float, timeout_s: float) -> None:
        now, late = time.monotonic(), isinstance(error, DeadlineExceeded)
        if error.bytes_up:
            self._throttle.told(now, accepted=error.reason != "overloaded")
        if error.reason in _ALARMING:
            self._breaker.failure(permit, timeout_s if late else math.inf, now)
        elif permit.trial and isinstance(error, CloudRefused):
            self._breaker.success(permit, now - began, now)  # it is there, and quick to say no
        else:
            self._breaker.abandon(permit)
        if late and permit.trial:
            self._connection.doubt(self._carrier.heard_at)
        if error.reason == "unauthorized" and not self._turned_away:
            self._turned_away = True
            _log.warning("the cloud at %s turns this node away: %s", self.target, error)

    def _left_alone(self) -> BreakerOpen:
        return BreakerOpen(f"{self.target} has been failing and is left alone")
