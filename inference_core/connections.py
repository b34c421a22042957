"""All HTTP connections of one server: how many there may be, and who makes room when there are too many."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from inference_core.errors import NotReady, http_status
from inference_core.http_bounds import Bounds, Phase
from inference_core.http_connection import HttpConnection

MAX_TURNED_AWAY = 64  # connections that have been refused and are read for another moment, beside the others
_SWEEP_S = 0.5
_TELL_S = 60.0
_log = logging.getLogger(__name__)


class Connections:
    """Those that are open, and what is refused before an application sees it.

    A stranger is a connection for which no application has vouched and which waits for no answer: it has
    asked nothing, or not to the end, or nothing that would show who it is. One too many ends the stranger
    that has been one for longest, so that who has been served goes on, and who asks at once gets in. Those
    that have been refused are no longer counted: they hold nobody's place.
    """

    def __init__(
        self,
        bounds: Bounds,
        on_refused: Callable[[int], object] = lambda _: None,
        on_displaced: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_refused` is told the status of each refusal that no application knows of, `on_displaced` of
        each connection that is ended without a word, to make room."""
        self.bounds = bounds
        self.on_refused = on_refused
        self._on_displaced = on_displaced
        self._open: set[HttpConnection] = set()
        self._strangers: OrderedDict[HttpConnection, None] = OrderedDict()
        self._leaving: OrderedDict[HttpConnection, None] = OrderedDict()
        self._displaced = self._turned_away = 0  # since it was last told
        self._told: float | None = None

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open) + len(self._leaving)

    def connect(self, **given: Any) -> asyncio.Protocol:
        """A connection's protocol, as uvicorn makes one with its `http` setting."""
        return HttpConnection(self, **given)

    def add(self, connection: HttpConnection) -> bool:
        """Count a connection, if there is room for it or somebody makes some; whether there was."""
        if len(self._open) >= self.bounds.connections:
            if not self._strangers:
                self._turned_away += 1
                self._lead_out(connection)
                return False
            oldest, _ = self._strangers.popitem(last=False)
            self._open.discard(oldest)
            oldest.transport.abort()
            self._displaced += 1
            self._on_displaced()
        self._open.add(connection)
        self._strangers[connection] = None
        return True

    def keep(self, connection: HttpConnection) -> None:
        """This one is no stranger: it is known, or waits for an answer."""
        self._strangers.pop(connection, None)

    def may_go(self, connection: HttpConnection) -> None:
        """This one is a stranger, if it was none: then the newest."""
        if connection in self._open:
            self._strangers[connection] = None

    def leaves(self, connection: HttpConnection) -> None:
        """This one has been told that it is the end."""
        if connection in self._open:
            self.discard(connection)
            self._lead_out(connection)

    def discard(self, connection: HttpConnection) -> None:
        """Count a connection no longer."""
        self._open.discard(connection)
        self._strangers.pop(connection, None)
        self._leaving.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End every connection that has taken too long, and say now and then what was ended for want of
        room; `now` is the loop's time, in seconds."""
        for connection in (*self._open, *self._leaving):
            connection.check(now)
        if self._displaced + self._turned_away and (self._told is None or now - self._told >= _TELL_S):
            _log.warning(
                "connections: more than %d, that is the limit: %d that had not been served made room, "
                "%d new ones were told to come back",
                self.bounds.connections, self._displaced, self._turned_away,
            )  # fmt: skip
            self._told, self._displaced, self._turned_away = now, 0, 0

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

    def _lead_out(self, connection: HttpConnection) -> None:
        """Of too many that leave, the first is not waited for."""
        self._leaving[connection] = None
        if len(self._leaving) > MAX_TURNED_AWAY:
            first, _ = self._leaving.popitem(last=False)
            first.transport.abort()
