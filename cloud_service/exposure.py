"""What must be set before the service listens where strangers are."""

import ipaddress
import logging
from collections.abc import Callable
from functools import partial

from cloud_service.nodes import read_revoked
from cloud_service.settings import Settings
from inference_core.certificate import Files, read

_log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Raise `ValueError`, with what to do, for settings that would serve strangers, are half of something, or
    name a file that cannot be used; warn where they are told to serve strangers."""
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ValueError("CLOUD_TLS_CLIENT_CA: without CLOUD_TLS_CERT and CLOUD_TLS_KEY there is no TLS")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ValueError("CLOUD_TLS_CERT and CLOUD_TLS_KEY: one without the other, both belong together")
    for name in ("nodes", "revoked_nodes"):
        if getattr(settings, name) and settings.tls_client_ca is None:
            raise ValueError(
                f"CLOUD_{name.upper()}: names nodes by their certificates, set CLOUD_TLS_CLIENT_CA as well"
            )
    _read_all(settings)
    if is_local(settings.host) or settings.tls_client_ca is not None:
        return
    if not settings.insecure:
        raise ValueError(
            f"CLOUD_HOST: {settings.host} is open to strangers; set CLOUD_TLS_CERT, CLOUD_TLS_KEY and "
            "CLOUD_TLS_CLIENT_CA, or CLOUD_INSECURE=true where the network keeps them out"
        )
    _log.warning(
        "insecure: whoever reaches %s may use every model; CLOUD_TLS_CLIENT_CA closes that", settings.host
    )


def _read_all(settings: Settings) -> None:
    """Raise `ValueError`, with the setting's name, for a file that cannot be used."""
    files, path = tls_files(settings), settings.revoked_nodes
    readers: list[tuple[str, Callable[[], object]]] = []
    if files is not None:
        readers.append(("CLOUD_TLS_CERT", partial(read, files)))
    if path is not None:
        readers.append(("CLOUD_REVOKED_NODES", partial(read_revoked, path)))
    for name, reader in readers:
        try:
            reader()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_files(settings: Settings) -> Files | None:
    """Where the server's certificate is; None for no TLS."""
    if settings.tls_cert is None:
        return None
    return Files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
