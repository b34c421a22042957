"""The metrics of the outbox, declared once, on a registry that is passed in; only of nodes that have one."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from edge_node.keeping import Reason

# Why samples were dropped: too old; no room, for this one alone, or for it among those of more worth; the way
# to the disk full; the disk failing; set aside before, and then too old or in the way.
DROPPED = ("age", "full", "too_large", "queue", "storage", "set_aside")


class OutboxMetrics:
    """The counters and gauges of one outbox.

    Samples that it held at the start, and those kept since, are still there, were forwarded, or were dropped
    as `age`, `full` or `set_aside`; the others that were dropped never came to the disk.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.depth = Gauge("tandem_outbox_depth", "Samples that wait to be forwarded.", registry=registry)
        self.set_aside = Gauge(
            "tandem_outbox_set_aside", "Samples that the cloud will not take.", registry=registry
        )
        self.bytes = Gauge("tandem_outbox_bytes", "Bytes of the samples on disk.", registry=registry)
        self.oldest = Gauge(
            "tandem_outbox_oldest_age_seconds", "Age of the oldest sample; 0 without any.", registry=registry
        )
        self.kept = Counter(
            "tandem_outbox_kept", "Samples written to disk, by why.", ["model", "reason"], registry=registry
        )
        self.forwarded = Counter(
            "tandem_outbox_forwarded", "Samples that the cloud has acknowledged.", registry=registry
        )
        self.sent = Counter(
            "tandem_outbox_sent_bytes", "Bytes of samples sent up, acknowledged or not.", registry=registry
        )
        self.dropped = Counter(
            "tandem_outbox_dropped", "Samples given up, by why.", ["reason"], registry=registry
        )
        for reason in DROPPED:
            self.dropped.labels(reason)
        self.poisoned = Counter(
            "tandem_outbox_poisoned", "Samples set aside: the cloud will not take them.", registry=registry
        )
        self.errors = Counter("tandem_outbox_errors", "Failures of the disk or its file.", registry=registry)
        self.writable = Gauge(
            "tandem_outbox_writable", "1 while samples can be written to disk.", registry=registry
        )
        self.audits = Counter(
            "tandem_audits", "Audited samples that the cloud has labelled, by whether both agree.",
            ["model", "agree"], registry=registry,
        )  # fmt: skip

    def add_model(self, model: str) -> None:
        """Show a model's series at zero, so that the first event is a rise."""
        for reason in Reason:
            self.kept.labels(model, reason)
        for agree in ("true", "false"):
            self.audits.labels(model, agree)

    def watch(self, depth: Callable[[], float], size: Callable[[], float], age: Callable[[], float]) -> None:
        """Show what these say: samples, bytes, seconds."""
        self.depth.set_function(depth)
        self.bytes.set_function(size)
        self.oldest.set_function(age)

    def audited(self, model: str, agree: bool) -> None:
        """Count an audit whose label has come."""
        self.audits.labels(model, str(agree).lower()).inc()
