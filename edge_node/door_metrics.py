"""The metrics of who gets in: keys of devices, and the age of certificates."""

from collections.abc import Iterable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge

from edge_node.keys import OUTCOMES, UNKNOWN
from inference_core.certificate import Credentials


class DoorMetrics:
    """Declared once, on a registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.expiry = Gauge(
            "tandem_certificate_expiry_timestamp_seconds",
            "When a certificate ends: server for devices, client for the cloud, and the cloud's authority.",
            ["which"], registry=registry,
        )  # fmt: skip
        self.keys = Counter(
            "tandem_key_requests", "Requests for inference, by whose key they show and what became of them.",
            ["key", "outcome"], registry=registry,
        )  # fmt: skip
        self._key = cache(self.keys.labels)
        self._names: frozenset[str] = frozenset()

    def count(self, name: str, outcome: str) -> None:
        """Count one request with the key of this name."""
        self._key(name, outcome).inc()

    def show_keys(self, names: Iterable[str]) -> None:
        """Show these keys' series from the start, and no longer those of keys that are gone."""
        fresh = frozenset(names)
        for name in self._names - fresh:
            for outcome in OUTCOMES:
                self.keys.remove(name, outcome)
        self._key.cache_clear()
        self._names = fresh
        self.keys.labels(UNKNOWN, "unauthenticated")
        for name in fresh:
            for outcome in OUTCOMES:
                self.keys.labels(name, outcome)

    def certified(self, credentials: Credentials) -> None:
        """Show when the certificate that devices are shown ends."""
        self._show("server", credentials)

    def certified_for_the_cloud(self, credentials: Credentials) -> None:
        """Show when the certificate that the cloud is shown ends, and the authority's of the cloud."""
        self._show("client", credentials)

    def _show(self, which: str, credentials: Credentials) -> None:
        for name, validity in ((which, credentials.own), ("cloud_authority", credentials.others)):
            if validity is not None:
                self.expiry.labels(name).set(validity.ends)
