"""The metrics of the sample store, declared once, on a registry that is passed in."""

from prometheus_client import CollectorRegistry, Counter, Gauge

REASONS = ("fallback", "low_confidence", "audit", "requested")


class SampleMetrics:
    """The counters and gauges of one store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stored = Counter(
            "tandem_samples_stored", "Samples stored, each once, by why the node had kept it.",
            ["reason"], registry=registry,
        )  # fmt: skip
        for reason in REASONS:
            self.stored.labels(reason)
        self.repeated = Counter(
            "tandem_samples_repeated", "Samples that came again, and were answered from the store.",
            registry=registry,
        )  # fmt: skip
        self.bytes = Gauge("tandem_samples_bytes", "Bytes of the store's file.", registry=registry)
        self.errors = Counter("tandem_samples_errors", "Failures of the disk or its file.", registry=registry)
        self.writable = Gauge(
            "tandem_samples_writable", "1 while samples can be written to disk.", registry=registry
        )
