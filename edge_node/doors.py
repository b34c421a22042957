"""How the node is closed to strangers, by the settings: TLS on both sides, and the keys of devices."""

import time
from functools import partial
from ssl import SSLContext

from edge_node.cloud_tls import CloudTls
from edge_node.door_metrics import DoorMetrics
from edge_node.exposure import cloud_tls_files, tls_files
from edge_node.keys import Entry, Keyring, read_keys
from edge_node.settings import Settings
from inference_core.tls import ServerTls
from inference_core.watch import Watch


class Doors:
    """What stands before the servers, and what the way to the cloud is made with; each None for nothing."""

    def __init__(self, settings: Settings, metrics: DoorMetrics) -> None:
        """Reads every file. Raises `ValueError` that names the one which cannot be used."""
        files, cloud_files, path = tls_files(settings), cloud_tls_files(settings), settings.api_keys
        self._metrics = metrics
        self._watch: Watch[tuple[Entry, ...]] | None = None
        self.tls = None if files is None else ServerTls(files, metrics.certified)
        self.cloud_tls = None
        if cloud_files is not None:
            self.cloud_tls = CloudTls(cloud_files, settings.cloud_tls_name, metrics.certified_for_the_cloud)
        self.keyring: Keyring | None = None
        if path is not None:
            self.keyring = Keyring(read_keys(path), time.monotonic, metrics.count)
            metrics.show_keys(self.keyring.names)
            self._watch = Watch("the file of API keys", [path], partial(read_keys, path), self._take_keys)

    @property
    def http_context(self) -> SSLContext | None:
        """How HTTP is served: by TLS, or plain."""
        return None if self.tls is None else self.tls.http_context()

    def start(self) -> None:
        """Take files again when they change, from now on."""
        for door in (self.tls, self.cloud_tls, self._watch):
            if door is not None:
                door.start()

    async def close(self) -> None:
        """Look at the files no more."""
        for door in (self.tls, self.cloud_tls, self._watch):
            if door is not None:
                await door.close()

    def _take_keys(self, entries: tuple[Entry, ...]) -> None:
        if self.keyring is not None:
            self.keyring.replace(entries)
            self._metrics.show_keys(self.keyring.names)
