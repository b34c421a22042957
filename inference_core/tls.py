"""A server's side of TLS, for gRPC and for HTTP, with certificates that may change while it serves."""

import ssl
from collections.abc import Callable

import grpc

from inference_core.certificate import Credentials, Files, server_context
from inference_core.renewal import Renewal
from inference_core.watch import INTERVAL_S


class ServerTls:
    """One server's certificate, and the authority of its clients where they must show one as well.

    Connections that are there stay; each new one is made with what the files held last.
    """

    def __init__(
        self,
        files: Files,
        on_change: Callable[[Credentials], object] = lambda _: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Reads the files. `on_change` is told of what is in use, now and after each change.

        Raises `ValueError` that names the file which cannot be used.
        """
        self._files = files
        self._on_change = on_change
        self._renewal = Renewal("the server's certificate", files, self._use, interval_s=interval_s)

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients must show a certificate."""
        return self._files.authority is not None

    def start(self) -> None:
        """Take the files again when they change, from now on."""
        self._renewal.start()

    async def close(self) -> None:
        """Look at the files no more."""
        await self._renewal.close()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: clients without a certificate that is asked for get no connection."""
        # Asked before each handshake, on a thread of gRPC's own.
        return grpc.dynamic_ssl_server_credentials(self._grpc, lambda: self._grpc, self.asks_for_certificates)

    def http_context(self) -> ssl.SSLContext:
        """For an HTTP server: clients may show a certificate where one is asked for, not must."""
        context = server_context(self._files)

        def renew(connection: ssl.SSLObject, *_: object) -> None:
            connection.context = self._context

        # The one place where OpenSSL lets a connection have another context than its server's.
        context.sni_callback = renew
        return context

    def _use(self, credentials: Credentials) -> None:
        self._context = server_context(self._files)
        self._grpc = grpc.ssl_server_certificate_configuration(
            [(credentials.key, credentials.certificate)], credentials.authority or None
        )
        self._on_change(credentials)
