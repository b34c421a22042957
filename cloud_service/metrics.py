"""Every metric of the cloud service, declared once, on a registry that is passed in."""

from collections.abc import Callable
from functools import cache, partial
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

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
        self._registry = registry
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

    def serve(self, host: str, port: int) -> tuple[WSGIServer, int]:
        """Serve `/metrics` from a thread; the server and its port. Raises `OSError` for a taken port."""
        try:
            server, _ = start_http_server(port, host, registry=self._registry)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {host}:{port}") from error
        return server, int(server.server_port)
