"""An HTTP server within a service: uvicorn's, with our connections and without its hold on the process."""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from inference_core.connections import Connections
from inference_core.http_bounds import Bounds
from inference_core.listening import http_socket

_SHUTDOWN_S = 2.0  # for a client's last word of TLS


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service, which has more to stop than this server."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, which gives TLS a minute: until its handshake has ended, a connection is
        neither counted nor timed by anyone else, and one that is closed waits for its client's word."""
        config, loop = self.config, asyncio.get_running_loop()
        await self.lifespan.startup()
        limits: dict[str, float] = {}
        if config.ssl is not None:
            limits = {"ssl_handshake_timeout": self._handshake_s, "ssl_shutdown_timeout": _SHUTDOWN_S}
        protocol: Any = config.http_protocol_class
        connect = partial(
            protocol, config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self.servers = [
            await loop.create_server(  # type: ignore[call-overload]
                connect, sock=sock, ssl=config.ssl, backlog=config.backlog, **limits
            )
            for sock in sockets or ()
        ]
        self.started = True


class HttpServer:
    """The listening HTTP server; `port` is known as soon as it exists."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        grace_s: float,
        connections: Connections | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind `host:port`, where port 0 picks a free one; HTTPS with `tls`. Raises `OSError` for a taken
        port."""
        self._connections = connections or Connections(Bounds())
        self._grace_s = grace_s
        self._socket = http_socket(host, port)
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app,
            http=self._connections.connect,  # type: ignore[arg-type]
            timeout_keep_alive=math.ceil(self._connections.bounds.idle_s),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        config.load()
        config.ssl = tls
        self._server = _Uvicorn(config, self._connections.bounds.head_s)
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Answer requests from now on."""
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http")
        self._watch = asyncio.create_task(self._connections.watch(), name="connections")

    async def stop(self) -> None:
        """Finish the requests in flight, within the grace given, and close."""
        self._server.should_exit = True
        # What is not all there by then will not be: it is told so before uvicorn cuts it off.
        unfinished = asyncio.get_running_loop().call_later(0.8 * self._grace_s, self._connections.stop)
        if self._task is not None:
            await self._task
        unfinished.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self._socket.close()
