"""The edge's side of TLS to the cloud: whom it trusts, and what it shows."""

from collections.abc import Callable

import grpc

from inference_core.certificate import Credentials, Files
from inference_core.renewal import Renewal
from inference_core.watch import INTERVAL_S


class CloudTls:
    """The authority of the cloud's certificate, and this node's own, taken again when their files change."""

    def __init__(
        self,
        files: Files,
        name: str = "",
        on_change: Callable[[Credentials], object] = lambda _: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Reads the files. `name` is what the cloud's certificate must be for, empty for the name that is
        dialled. `on_change` is told of what is in use, now and after each change.

        Raises `ValueError` that names the file which cannot be used.
        """
        self.options = [("grpc.ssl_target_name_override", name)] if name else []
        self._on_change = on_change
        self._users: list[Callable[[], object]] = []
        self._renewal = Renewal("the certificate for the cloud", files, self._use, interval_s=interval_s)

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """For a new channel."""
        return self._credentials

    def tell(self, renewed: Callable[[], object]) -> None:
        """Have `renewed` called whenever new channels get other credentials."""
        self._users.append(renewed)

    def start(self) -> None:
        """Take the files again when they change, from now on."""
        self._renewal.start()

    async def close(self) -> None:
        """Look at the files no more."""
        await self._renewal.close()

    def _use(self, credentials: Credentials) -> None:
        self._credentials = grpc.ssl_channel_credentials(
            credentials.authority or None, credentials.key or None, credentials.certificate or None
        )
        self._on_change(credentials)
        for renewed in self._users:
            renewed()
