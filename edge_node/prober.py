"""Keeps what is known of the link fresh while mode `auto` needs it and nothing else is sent. Sparing.

A probe is one tiny call; where the rate is not known well enough it carries padding, more each time, up to
the size of what is really sent. `due` is the rule and pure; `Prober` follows it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_node.link import Estimate, Link
from inference_core.errors import CloudUnavailable

WANTED_S = 10.0  # after the last request in mode `auto` the link is not watched any more
_STALE_S = 5.0  # without news, while it is watched
_LOST_S = 0.2  # between two questions whether a lost link is back
_PADDINGS = (2_000, 8_000, 32_000, 128_000)
_UNSURE = 0.5  # spread of the rate, as a share of it, from which it is asked for
_PATIENT_S = 0.25  # what a padded probe may take of the link
_AGAIN_S = 60.0  # after which the rate is asked for anew, if it is unsure by then
_TIMEOUT_S = 2.0
_PROBE_BYTES, _REPLY_BYTES = 60, 80
_log = logging.getLogger(__name__)


class Probed(Protocol):
    """What can be asked for a sign of life."""

    async def probe(self, padding: int, timeout_s: float) -> int:
        """One call with so many bytes that mean nothing; the bytes of the answer, else `CloudUnavailable`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What has been asked already: seconds since the last probe, and how many paddings have been tried since
    the link last changed."""

    since_s: float
    paddings: int


def due(link: Estimate, asked: Asked, largest: int, guess: Callable[[int], float]) -> int | None:
    """The bytes of padding of the probe to send now, None for no probe.

    `largest` is what the largest message that may be sent holds; `guess` says how many seconds a message of
    so many bytes would take.
    """
    if link.lost:
        return 0 if asked.since_s >= _LOST_S else None
    if link.age > _STALE_S:
        return 0 if asked.since_s >= min(_STALE_S, link.age) else None
    if link.up_spread > _UNSURE and asked.paddings < len(_PADDINGS):
        padding = _PADDINGS[asked.paddings]
        if padding <= 2 * largest and guess(padding) - guess(0) <= _PATIENT_S:
            return padding
    return None


class Prober:
    """Watches one link on behalf of the requests that call `want`."""

    def __init__(self, cloud: Probed, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._cloud = cloud
        self._link = link
        self._clock = clock
        self._wanted = asyncio.Event()
        self._until = 0.0
        self._largest = 0
        self._asked_at = self._padded_at = -1e9
        self._paddings = self._changes = 0
        self._task: asyncio.Task[None] | None = None

    def want(self, largest: int) -> None:
        """The link matters, for messages of up to `largest` bytes."""
        self._until = self._clock() + WANTED_S
        self._largest = max(self._largest, largest)
        self._wanted.set()

    def start(self) -> None:
        """Watch from now on."""
        self._task = asyncio.create_task(self._watch(), name="link probes")

    async def close(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            await self._wanted.wait()
            if self._clock() > self._until:
                self._wanted.clear()
                continue
            padding = self._due()
            if padding is not None:
                try:
                    await self._probe(padding)
                except Exception:  # noqa: BLE001 - a bug must not leave a lost link lost
                    _log.exception("asking for a sign of life failed unexpectedly")
            await asyncio.sleep(_LOST_S / 4)

    def _due(self) -> int | None:
        now = self._clock()
        if self._link.changes != self._changes or now - self._padded_at > _AGAIN_S:
            self._changes, self._paddings, self._padded_at = self._link.changes, 0, now
        asked = Asked(now - self._asked_at, self._paddings)

        def guess(padding: int) -> float:
            return self._link.transfer(now, padding + _PROBE_BYTES, _REPLY_BYTES).seconds

        return due(self._link.estimate(now), asked, self._largest, guess)

    async def _probe(self, padding: int) -> None:
        self._asked_at = self._clock()
        self._paddings += padding > 0
        trip = self._link.depart(self._asked_at, padding + _PROBE_BYTES)
        try:
            answered = await self._cloud.probe(padding, _TIMEOUT_S)
        except CloudUnavailable as error:
            if error.reason == "deadline":
                self._link.fail(trip, self._clock())
            else:  # not even sent: nothing is known of the link, but that there is no way
                self._link.abandon(trip)
                self._link.break_off(self._clock())
        except BaseException:
            self._link.abandon(trip)
            raise
        else:
            self._link.arrive(trip, self._clock(), answered, 0.0)
