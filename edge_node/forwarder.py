"""Forwards the outbox to the cloud in the background, while the link has nothing better to do.

One sample at a time. Those that were never tried go first, the oldest first; then those that were put off. A
sample leaves the outbox when the cloud has acknowledged it; what is sent twice is stored once, by its key.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from edge_node.disclosure import Disclosure
from edge_node.fleet_client import FleetClient, NotTaken, Receipt, Trouble
from edge_node.keeping import Reason
from edge_node.link import Link
from edge_node.outbox import Outbox
from edge_node.outbox_metrics import OutboxMetrics
from edge_node.sample_store import Sample
from inference_core.errors import CloudUnavailable, InvalidInput, Overloaded, TandemError

MAX_TRIES = 5  # at which the cloud fails over a sample, before it is set aside
_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_LOOK_S = 0.25  # between two looks at an empty outbox, or for a cloud
_QUIET_S = 0.1  # since the last escalation or its answer, for the link to count as idle
_STARVED_S = 2.0  # for which a sample waits for an idle link; then it goes all the same, at its share
_UNKNOWN_RATE = 320_000.0  # bytes a second, as long as nobody knows
_LATE_S = 60.0  # after which one that came to nothing in its time is tried again; the others go before
_ELSEWHERE_S = 600.0  # until the cloud, or this node, may have another bundle
_PAUSE_S = {Trouble.BUSY: 5.0, Trouble.GONE: 1.0, Trouble.UNSUPPORTED: 600.0, Trouble.FORBIDDEN: 60.0}


class Forwarder:
    """One node's background task."""

    def __init__(
        self,
        outbox: Outbox,
        disclosure: Disclosure,
        client: FleetClient,
        link: Link,
        metrics: OutboxMetrics,
        *,
        share: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`share` is the part of the link's rate that may be used; `clock` is monotonic, in seconds."""
        self._outbox = outbox
        self._disclosure = disclosure
        self._client = client
        self._link = link
        self._metrics = metrics
        self._share = share
        self._clock = clock
        self._next_at = 0.0  # by the share
        self._paused_until = 0.0
        self._waits_since: float | None = None
        self._troubled: Trouble | None = None
        self._elsewhere: dict[str, float] = {}  # until when, by the bundle's digest
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Forward from now on."""
        self._task = asyncio.create_task(self._run(), name="forwarder")

    async def close(self) -> None:
        """Stop; what was under way is sent again another time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def step(self) -> float:
        """Forward one sample if there is one and it may go; the seconds until the next look."""
        now = self._clock()
        if not self._client.reachable():
            if self._troubled is Trouble.UNSUPPORTED:  # the next one may be another
                self._paused_until = now
            return _LOOK_S
        wait = max(self._paused_until, self._next_at) - now
        if wait > 0:
            return min(wait, _LOOK_S)
        if not self._outbox.depth:
            return _LOOK_S
        if not self._is_turn(now):
            return _QUIET_S
        found = await _result(self._outbox.next())
        if found is None:
            return _LOOK_S
        self._waits_since = None
        try:
            await self._forward(*found)
        except Exception:  # noqa: BLE001 - whatever it is, it must not hold up the others
            _log.exception("forwarding sample %s failed unexpectedly", found[0].key)
            await self._not_taken(*found, Trouble.FAILED, "forwarding it failed unexpectedly")
        return 0.0

    async def _run(self) -> None:
        while True:
            try:
                wait = await self.step()
            except Exception:  # noqa: BLE001 - a bug must not end forwarding
                _log.exception("forwarding failed unexpectedly")
                wait = _LOOK_S
            await asyncio.sleep(wait)

    def _is_turn(self, now: float) -> bool:
        """Whether the link is idle, or has not been for so long that the outbox would starve."""
        last = max(self._link.departed, self._link.heard)
        if not self._link.under_way and now - last >= _QUIET_S:
            return True
        if self._waits_since is None:
            self._waits_since = now
        return now - self._waits_since >= _STARVED_S

    async def _forward(self, sample: Sample, tries: int) -> None:
        if self._elsewhere.get(sample.digest, 0.0) > self._clock():
            await _result(self._outbox.defer_bundle(sample.digest, _ELSEWHERE_S))
            return
        try:
            disclosed = await self._disclosure.of(sample)
            if disclosed is None:
                await _result(self._outbox.defer_bundle(sample.digest, _ELSEWHERE_S))
                return
            receipt = await self._client.put(self._client.message(sample, disclosed), self._pay)
        except NotTaken as error:
            await self._not_taken(sample, tries, error.trouble, str(error))
        except InvalidInput as error:
            await self._not_taken(sample, tries, Trouble.REFUSED, str(error))
        except (CloudUnavailable, Overloaded):  # not sent: the way up or this node has no room now
            self._paused_until = self._clock() + _PAUSE_S[Trouble.GONE]
        except TandemError as error:
            await self._not_taken(sample, tries, Trouble.FAILED, str(error))
        else:
            await self._taken(sample, receipt)

    def _pay(self, nbytes: int) -> None:
        """So many bytes go up now: the next when the share of the link has carried them."""
        now = self._clock()
        estimate = self._link.estimate(now)
        rate = estimate.up if estimate.up_spread < 1 else _UNKNOWN_RATE
        self._next_at = now + nbytes / (rate * self._share)
        self._metrics.sent.inc(nbytes)

    async def _taken(self, sample: Sample, receipt: Receipt) -> None:
        if self._troubled is not None:
            self._troubled = None
            _log.info("the cloud takes samples again")
        gone = await _result(self._outbox.forwarded(sample.key))
        # Only once, though it may have been sent before: what is still here has not been counted.
        if gone and sample.reason is Reason.AUDIT and sample.edge is not None:
            self._metrics.audited(sample.model, sample.edge.index == receipt.index)

    async def _not_taken(self, sample: Sample, tries: int, trouble: Trouble, text: str) -> None:
        if trouble is Trouble.REFUSED or (trouble is Trouble.FAILED and tries + 1 >= MAX_TRIES):
            _log.warning("sample %s is set aside: %s", sample.key, text)
            await _result(self._outbox.put_aside(sample.key))
        elif trouble is Trouble.FAILED:
            await _result(self._outbox.defer(sample.key, 2.0**tries, failed=True))
        elif trouble is Trouble.LATE:
            self._paused_until = self._clock() + _PAUSE_S[Trouble.BUSY]
            await _result(self._outbox.defer(sample.key, _LATE_S, failed=False))
        elif trouble is Trouble.ELSEWHERE:
            if sample.digest not in self._elsewhere:
                _log.warning("samples of %s wait: %s", sample.model, text)
            self._elsewhere[sample.digest] = self._clock() + _ELSEWHERE_S
            await _result(self._outbox.defer_bundle(sample.digest, _ELSEWHERE_S))
        else:
            self._paused_until = self._clock() + _PAUSE_S[trouble]
            if trouble is not Trouble.GONE and trouble is not self._troubled:
                self._troubled = trouble
                _log.warning("the cloud takes no samples now: %s", text)


async def _result(future: Future[_T]) -> _T:
    """What the outbox has to say; it is never cancelled, whoever waits for it."""
    return await asyncio.shield(asyncio.wrap_future(future))
