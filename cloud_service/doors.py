"""How the service is closed to strangers: TLS, the nodes that may call, and the files behind both."""

from collections.abc import Callable
from functools import partial
from ssl import SSLContext

from starlette.types import ASGIApp

from cloud_service.exposure import tls_files
from cloud_service.guard import CallGuard, HttpGuard
from cloud_service.nodes import Nodes, read_revoked
from cloud_service.settings import Settings
from inference_core.certificate import Credentials
from inference_core.tls import ServerTls
from inference_core.watch import Watch


class Doors:
    """What the settings say of TLS and nodes, ready to be put in front of the two servers."""

    def __init__(
        self,
        settings: Settings,
        on_certificate: Callable[[Credentials], object],
        on_refused: Callable[[str], object],
    ) -> None:
        """Reads every file. `on_certificate` is told of the certificates in use, `on_refused` why the holder
        of a certificate was refused. Raises `ValueError` that names the file which cannot be used."""
        files = tls_files(settings)
        self.tls = None if files is None else ServerTls(files, on_certificate)
        self._asks = self.tls is not None and self.tls.asks_for_certificates
        self._revocations: Watch[frozenset[str]] | None = None
        self.nodes, path = Nodes(settings.nodes, (), on_refused), settings.revoked_nodes
        if path is not None:
            # Watched before it is read: so no change in between is missed.
            self._revocations = Watch(
                "the list of revoked nodes", [path], partial(read_revoked, path), self.nodes.revoke
            )
            self.nodes.revoke(read_revoked(path))

    def start(self) -> None:
        """Take files again when they change, from now on."""
        for door in (self.tls, self._revocations):
            if door is not None:
                door.start()

    async def close(self) -> None:
        """Look at the files no more."""
        for door in (self.tls, self._revocations):
            if door is not None:
                await door.close()

    @property
    def interceptors(self) -> list[CallGuard]:
        """What stands before every gRPC call."""
        return [CallGuard(self.nodes)] if self._asks else []

    @property
    def http_context(self) -> SSLContext | None:
        """How HTTP is served: by TLS, or plain."""
        return None if self.tls is None else self.tls.http_context()

    def behind(self, app: ASGIApp) -> ASGIApp:
        """The HTTP application, behind the guard where there is one."""
        return HttpGuard(app, self.nodes) if self._asks else app
