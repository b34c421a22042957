"""All HTTP connections of one server: how many there may be, and who makes room when there are too many."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from inference_core.errors import NotReady, http_status
from inference_core.http_bounds import Bounds, Phase
from inference_core.http_connection import HttpConnection

MAX_TURNED_AWAY = 64  # connections over the limit that are told so; more are dropped
DISPLACED, DROPPED = "displaced", "dropped"
_SWEEP_S = 0.5
_TELL_S = 60.0
_log = logging.getLogger(__name__)


def _ignore(_: object) -> None:
    """Nobody wants to know."""


class Connections:
    """Those that are open, and what is refused before an application sees it.

    A stranger is a connection for which no application has vouched and which waits for no answer: it has
    asked nothing, or not to the end, or nothing that would show who it is. One too many ends the stranger
    that has been one for longest, so that who has been served goes on, and who asks at once gets in.
    """

    def __init__(
        self,
        bounds: Bounds,
        on_refused: Callable[[int], object] = _ignore,
        on_closed: Callable[[str], object] = _ignore,
    ) -> None:
        """`on_refused` is told the status of each refusal that no application knows of, `on_closed` of each
        connection that is ended without a word: `DISPLACED` by another, or `DROPPED` as it came."""
        self.bounds = bounds
        self.on_refused = on_refused
        self._on_closed = on_closed
        self._open: set[HttpConnection] = set()
        self._strangers: OrderedDict[HttpConnection, None] = OrderedDict()
        self._closed = dict.fromkeys((DISPLACED, DROPPED), 0)  # since it was last told
        self._told: float | None = None

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def connect(self, **given: Any) -> asyncio.Protocol:
        """A connection's protocol, as uvicorn makes one with its `http` setting."""
        return HttpConnection(self, **given)

    def add(self, connection: HttpConnection) -> bool:
        """Count a connection, and whether it may stay. Many too many are dropped here."""
        if len(self._open) >= self.bounds.connections and self._strangers:
            oldest, _ = self._strangers.popitem(last=False)
            self._open.discard(oldest)
            self._close(oldest, DISPLACED)
        self._open.add(connection)
        self._strangers[connection] = None
        if len(self._open) > self.bounds.connections + MAX_TURNED_AWAY:
            self._close(connection, DROPPED)
        return len(self._open) <= self.bounds.connections

    def keep(self, connection: HttpConnection) -> None:
        """This one is no stranger, or none that could make room: it is being answered, or told why not."""
        self._strangers.pop(connection, None)

    def may_go(self, connection: HttpConnection) -> None:
        """This one is a stranger, if it was none: then the newest."""
        if connection in self._open:
            self._strangers[connection] = None

    def discard(self, connection: HttpConnection) -> None:
        """Count a connection no longer."""
        self._open.discard(connection)
        self._strangers.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End every connection that has taken too long, and say now and then what was ended for want of
        room; `now` is the loop's time, in seconds."""
        for connection in tuple(self._open):
            connection.check(now)
        if any(self._closed.values()) and (self._told is None or now - self._told >= _TELL_S):
            self._told = now
            _log.warning(
                "connections: more than %d, that is the limit: %d that had not been served made room, "
                "%d new ones were dropped",
                self.bounds.connections, self._closed[DISPLACED], self._closed[DROPPED],
            )  # fmt: skip
            self._closed = dict.fromkeys(self._closed, 0)

    def stop(self) -> None:
        """End every connection whose request is not all there: it will not be answered here any more."""
        stopping = NotReady("the service is stopping")
        for connection in tuple(self._open):
            if connection.phase in (Phase.HEAD, Phase.BODY):
                connection.refuse(http_status(stopping), str(stopping), stopping.retry_after_s)

    async def watch(self) -> None:
        """Sweep now and then, until cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep(now())

    def _close(self, connection: HttpConnection, why: str) -> None:
        connection.transport.abort()
        self._closed[why] += 1
        self._on_closed(why)
