"""What must be set before the node listens where strangers are, and what makes no sense together."""

import ipaddress
import logging
from collections.abc import Callable
from functools import partial

from edge_node.keys import read_keys
from edge_node.settings import Settings
from inference_core.certificate import Files, read

_log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Raise `ValueError`, with what to do, for settings that would serve strangers, are half of something, or
    name a file that cannot be used; warn where strangers are served, or can read keys on their way."""
    for ours, theirs in (("tls_cert", "tls_key"), ("cloud_tls_cert", "cloud_tls_key")):
        if (getattr(settings, ours) is None) != (getattr(settings, theirs) is None):
            raise ValueError(
                f"EDGE_{ours.upper()} and EDGE_{theirs.upper()}: one without the other, both belong together"
            )
    if settings.cloud_tls_ca is None and (settings.cloud_tls_cert is not None or settings.cloud_tls_name):
        raise ValueError(
            "EDGE_CLOUD_TLS_CA: is empty, so that there would be no TLS to the cloud; name the PEM file of "
            "the authority of the cloud's certificate"
        )
    _read_all(settings)
    strange = [peer for peer in settings.cloud if not is_local(peer.rpartition(":")[0].strip("[]"))]
    if settings.cloud_tls_ca is None and strange:
        _log.warning(
            "what goes up can be read on its way to %s; EDGE_CLOUD_TLS_CA closes that", ", ".join(strange)
        )
    if is_local(settings.host):
        return
    if settings.api_keys is None and not settings.insecure:
        raise ValueError(
            f"EDGE_HOST: {settings.host} is open to strangers; set EDGE_API_KEYS, or EDGE_INSECURE=true "
            "where the network keeps them out"
        )
    if settings.api_keys is None:
        _log.warning(
            "insecure: whoever reaches %s may use every model; EDGE_API_KEYS closes that", settings.host
        )
    elif settings.tls_cert is None:
        _log.warning(
            "keys of devices can be read on their way to %s; EDGE_TLS_CERT and EDGE_TLS_KEY close that",
            settings.host,
        )


def _read_all(settings: Settings) -> None:
    """Raise `ValueError`, with the setting's name, for a file that cannot be used."""
    files, cloud_files, path = tls_files(settings), cloud_tls_files(settings), settings.api_keys
    readers: list[tuple[str, Callable[[], object]]] = []
    if files is not None:
        readers.append(("EDGE_TLS_CERT", partial(read, files)))
    if cloud_files is not None:
        readers.append(("EDGE_CLOUD_TLS_CA", partial(read, cloud_files)))
    if path is not None:
        readers.append(("EDGE_API_KEYS", partial(read_keys, path)))
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
    """Where the certificate that devices are shown is; None for no TLS."""
    return None if settings.tls_cert is None else Files(settings.tls_cert, settings.tls_key, None)


def cloud_tls_files(settings: Settings) -> Files | None:
    """Where what the cloud is shown, and the authority of what it shows, are; None for no TLS."""
    if settings.cloud_tls_ca is None:
        return None
    return Files(settings.cloud_tls_cert, settings.cloud_tls_key, settings.cloud_tls_ca)
