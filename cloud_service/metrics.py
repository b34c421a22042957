"""Every metric of the cloud service, declared once, on a registry that is passed in."""

from collections.abc import Callable
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloud_service.admission import REASONS as SHED_REASONS
from cloud_service.nodes import REASONS
from inference_core.certificate import Credentials
from inference_core.priority import Priority

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.08, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Series:
    """One model's series, each looked up once: labels cost more than the counting."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self.outcome = cache(partial(metrics.requests.labels, model))
        self.stage = cache(partial(metrics.stages.labels, model))
        self.seconds = metrics.seconds.labels(model)
        self.received = metrics.bytes.labels(model, "received")
        self.sent = metrics.bytes.labels(model, "sent")


class Method:
    """The series of one gRPC method, each looked up once."""

    def __init__(self, metrics: "Metrics", kind: str, service: str, method: str) -> None:
        labels = (kind, service, method)
        self.started = metrics.grpc_started.labels(*labels)
        self.handled = cache(partial(metrics.grpc_handled.labels, *labels))
        self.seconds = metrics.grpc_seconds.labels(*labels)
        self.received = metrics.grpc_received.labels(*labels)
        self.sent = metrics.grpc_sent.labels(*labels)


class Metrics:
    """The counters, gauges and histograms of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.series = cache(partial(Series, self))
        self.method = cache(partial(Method, self))
        self.requests = Counter(
            "tandem_cloud_requests",
            "Calls answered, by what became of them.",
            ["model", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "tandem_cloud_request_duration_seconds",
            "From the arrival of a call to its answer.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "tandem_cloud_stage_duration_seconds",
            "Time of one stage of a call: decode, queue or infer.",
            ["model", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "tandem_batch_size", "Samples in one model run.", ["model"], buckets=BATCHES, registry=registry
        )
        self.depth = Gauge("tandem_queue_depth", "Samples that wait for a run.", ["model"], registry=registry)
        self.queue_limit = Gauge(
            "tandem_queue_limit",
            "Samples that may wait and run, by how late answers are.",
            ["model"],
            registry=registry,
        )
        self.shed = Counter(
            "tandem_shed_requests",
            "Requests turned away because there was too much to do, by why.",
            ["priority", "reason"],
            registry=registry,
        )
        for priority in Priority:
            for why in SHED_REASONS:
                self.shed.labels(priority, why)
        self.bytes = Counter(
            "tandem_cloud_bytes", "Bytes of infer messages.", ["model", "direction"], registry=registry
        )
        self.inflight = Gauge(
            "tandem_cloud_inflight_requests", "Infer calls being answered.", registry=registry
        )
        self.model_info = Gauge(
            "tandem_model_info",
            "1 for each model served.",
            ["model", "version", "precision", "digest"],
            registry=registry,
        )
        self.expiry = Gauge(
            "tandem_certificate_expiry_timestamp_seconds",
            "When a certificate ends: the server's, and the first of its clients' authorities.",
            ["which"],
            registry=registry,
        )
        self.refused_nodes = Counter(
            "tandem_refused_nodes",
            "Calls refused to the holder of a certificate.",
            ["reason"],
            registry=registry,
        )
        for reason in REASONS:
            self.refused_nodes.labels(reason)
        method = ["grpc_type", "grpc_service", "grpc_method"]
        self.grpc_started = Counter("grpc_server_started", "gRPC calls started.", method, registry=registry)
        self.grpc_handled = Counter(
            "grpc_server_handled", "gRPC calls ended, by status.", [*method, "grpc_code"], registry=registry
        )
        self.grpc_received = Counter(
            "grpc_server_msg_received", "Messages received on gRPC calls.", method, registry=registry
        )
        self.grpc_sent = Counter(
            "grpc_server_msg_sent", "Messages sent on gRPC calls.", method, registry=registry
        )
        self.grpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time to handle a gRPC call.",
            method,
            buckets=SECONDS,
            registry=registry,
        )

    def batch_observer(self, model: str) -> Callable[[int], object]:
        """What a batcher tells the samples of each run."""
        return self.batches.labels(model).observe

    def add_model(
        self, name: str, version: str, precision: str, digest: str, depth: Callable[[], int]
    ) -> None:
        """Show a model, with every series it will have at zero, so that the first event is a rise."""
        self.model_info.labels(name, version, precision, digest[:12]).set(1)
        self.depth.labels(name).set_function(depth)
        self.requests.labels(name, "ok")
        for direction in ("received", "sent"):
            self.bytes.labels(name, direction)

    def turned_away(self, status: int) -> None:
        """Count a request that was refused, with an HTTP status, before anyone knew what it asks for."""
        outcome = "resource_exhausted" if status == 503 else "invalid_argument"
        self.series("unknown").outcome(outcome).inc()

    def remove_model(self, name: str, version: str, precision: str, digest: str, *, gone: bool) -> None:
        """Show a model no more in that version; `gone` where there is no other."""
        self.model_info.remove(name, version, precision, digest[:12])
        if gone:
            self.depth.remove(name)
            self.queue_limit.remove(name)

    def show_limit(self, name: str, limit: Callable[[], int]) -> None:
        """Show how many samples of a model may wait and run."""
        self.queue_limit.labels(name).set_function(limit)

    def declined(self, priority: Priority, reason: str) -> None:
        """Count a request for which there was no room, or no time."""
        self.shed.labels(priority, reason).inc()

    def certified(self, credentials: Credentials) -> None:
        """Show when the certificates that are in use end."""
        for which, validity in (("server", credentials.own), ("client_authority", credentials.others)):
            if validity is not None:
                self.expiry.labels(which).set(validity.ends)
