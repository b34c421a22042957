"""HTTP connections that a stranger cannot keep, fill or flood: uvicorn's own, with a bound on everything.

Uvicorn takes heads of any size, waits for the rest of a request for ever, queues as many requests of one
connection as come, and keeps an answer that nobody reads. Both services count and time strangers in the same
way (docs/adr/0018-hostile-bytes.md). For each request no more is done than to note when its head and its body
began: what takes too long is found by looking at all connections now and then.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httptools
import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from inference_core.errors import Overloaded, TooSlow, http_status
from inference_core.http_bounds import Flow, Phase

if TYPE_CHECKING:
    from inference_core.connections import Connections

PEER = "peer"  # in a request's state: the certificate that its sender has shown, as `ssl` has it
REFUSED = "refused"  # in a request's state: the status and the words that its sender has got meanwhile
_VOUCH = "vouch"
MAX_PIPELINED = 16
_LINGER_S = 1.0


def vouch(scope: Scope) -> None:
    """Say that the sender of a request is one to be served: its connection makes no room for others."""
    if known := scope.get("state", {}).get(_VOUCH):
        known()


class _Refused(Exception):
    """Leaves the parser: what there is to say is known already."""


class HttpConnection(HttpToolsProtocol):
    """One connection. `since` is the loop's time, in seconds, at which its phase began."""

    def __init__(self, all_of_them: "Connections", **given: Any) -> None:
        super().__init__(**given)
        self._all = all_of_them
        self._bounds = all_of_them.bounds
        self._fed = 0  # bytes since the parser last got on: more are not in an unfinished head
        self._got_on = False
        self._refusal: tuple[int, str] | None = None
        self._later: tuple[int, str, float] | None = None
        self._unsent, self._unsent_since = 0, 0.0
        self._known = False
        self._unanswered = 0  # requests that are all there
        self.phase = Phase.NOTHING
        self.since = self.loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to answer and nothing has begun to come."""
        return self.phase is Phase.NOTHING and not self._answering

    @property
    def _owes(self) -> bool:
        """Whether there is somebody to answer."""
        return self._answering and not self.cycle.disconnected

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; one too many is told so."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        self.app_state = {**self.app_state, _VOUCH: self._vouch}
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state[PEER] = tls.getpeercert()
        if not self._all.add(self):
            full = Overloaded(f"connections: {self._bounds.connections} are open, that is the limit")
            self.refuse(http_status(full), str(full), full.retry_after_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, whoever has ended it."""
        self._all.discard(self)
        self.app_state = {}
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing: while it does not, it is nobody who waits for an answer."""
        super().pause_writing()
        self._rank()

    def resume_writing(self) -> None:
        """The client takes its answer."""
        super().resume_writing()
        self._rank()

    def _rank(self) -> None:
        """Whether it may make room for others: who is known may not, nor who waits for an answer."""
        if self._known or (self._unanswered > 0 and not self.flow.write_paused):
            self._all.keep(self)
        else:
            self._all.may_go(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, and count what the parser cannot use yet."""
        if self.phase is Phase.END:
            return
        self._unset_keepalive_if_required()
        if self._got_on:
            self._got_on = False
            if self.phase is not Phase.HEAD:
                self._fed = 0
        self._fed += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError:
            self.refuse(*(self._refusal or (400, "request: its target cannot be read")))
        except httptools.HttpParserError as error:
            self.refuse(400, f"request: not HTTP/1.1: {error}")
        else:
            # A head without an end; or what trails a body, or a chunk's head.
            if self._fed > self._bounds.head_bytes and not self._got_on:
                self.refuse(*self._over_the_limit(self._fed))

    def _feed(self, data: bytes) -> None:
        """Parse. Who asks for another protocol goes on with this one: what follows is the next request."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            else:
                return

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self.phase = Phase.HEAD
        self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        """A head has ended: if it is within the limits, its request begins."""
        if self._fed > self._bounds.head_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._bounds.head_bytes:
                self._refusal = self._over_the_limit(size)
                raise _Refused
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = 400, f"request: {MAX_PIPELINED} of this connection wait, that is the limit"
            raise _Refused
        super().on_headers_complete()
        self.headers = []  # the application has its list: what trails the body goes into another
        self.phase = Phase.BODY
        self.since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body has ended, or there is none."""
        self._got_on = True
        self.phase = Phase.NOTHING
        self._unanswered += 1
        self._rank()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been handed over, perhaps before all of its request was there."""
        self._unanswered -= 1
        self._rank()
        if self.phase is Phase.NOTHING:
            self.since = self.loop.time()
        if self._later is not None and len(self.pipeline) == 1:  # what is next is refused already
            self.pipeline.clear()
            self.cycle.disconnected = True
            if not self.transport.is_closing():
                self._write(*self._later)
            self._finish()
            return
        super().on_response_complete()
        if self.phase is Phase.END and not self._answering:
            self._finish()

    def check(self, now: float) -> None:
        """End the connection if its client has been too slow, by the loop's time `now`."""
        waited, bounds = now - self.since, self._bounds
        if self._is_stuck(now):
            self.transport.abort()
        elif self.phase is Phase.HEAD:
            if waited > bounds.head_s:
                self.refuse(*_too_slow("head", bounds.head_s))
        elif self.phase is Phase.BODY:
            if waited > bounds.body_s:
                self.refuse(*_too_slow("body", bounds.body_s))
        elif waited > (_LINGER_S if self.phase is Phase.END else bounds.idle_s) and not self._owes:
            self.end()

    def end(self) -> None:
        """Close, once what was written has gone out."""
        if not self.transport.is_closing():
            self.transport.close()

    def _vouch(self) -> None:
        self._known = True
        self._rank()

    def _is_stuck(self, now: float) -> bool:
        """Whether nothing of an answer has been taken for longer than a body may take."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        return unsent > 0 and now - self._unsent_since > self._bounds.body_s

    def _over_the_limit(self, size: int) -> tuple[int, str]:
        limit = self._bounds.head_bytes
        if len(self.url) > limit:
            return 414, f"request: a target of {len(self.url)} bytes or more, the limit is {limit}"
        return 431, f"headers: {size} bytes or more, the limit is {limit}"

    def refuse(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        """Tell the client and close, after the answers that it still has to get."""
        reading, self.phase, self.since = self.phase is Phase.BODY, Phase.END, self.loop.time()
        if self._answering and not reading:
            return
        if self.pipeline:  # its turn to be answered comes when those before it have been
            self._later = status, message, retry_after_s
            self._all.on_refused(status)
            return
        if self._answering:
            # Whoever reads the body learns that no more of it will come, and why.
            self.cycle.scope["state"][REFUSED] = status, message
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._all.on_refused(status)
        if self.transport.is_closing():
            return
        if not (reading and self.cycle.response_started):  # else only its body goes on
            self._write(status, message, retry_after_s)
        self._finish()

    def _finish(self) -> None:
        """Say that nothing more will be said. Closing now could destroy what is on its way, if the client is
        still sending: that is read for a moment, and thrown away."""
        self.since = self.loop.time()
        self._all.leaves(self)
        if not self.transport.can_write_eof():
            self.transport.close()
        elif not self.transport.is_closing():
            with contextlib.suppress(OSError):
                self.transport.write_eof()
            self.flow.resume_reading()

    def _write(self, status: int, message: str, retry_after_s: float) -> None:
        body = orjson.dumps({"error": message})
        retry = b"retry-after: %d\r\n" % max(1, round(retry_after_s)) if retry_after_s else b""
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + retry + b"\r\n" + body)


def _too_slow(what: str, limit_s: float) -> tuple[int, str]:
    error = TooSlow(f"{what}: not complete after {limit_s:g} s, that is the limit")
    return http_status(error), str(error)
