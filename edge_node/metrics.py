"""Every metric of the edge node, declared once, on a registry that is passed in."""

import math
from collections.abc import Callable
from functools import cache, partial
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from edge_node.breaker import State
from edge_node.link import Estimate
from edge_node.model_slot import LoadedModel
from edge_node.outcome import Outcome
from edge_node.policy import Route, Source

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.08, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
RATIOS = tuple(step / 20 for step in range(1, 21))
# Shown from the start, so that the first refusal is a rise.
REFUSALS = {
    "device": ("400", "404", "413", "500", "503"),
    "open_inference": ("400", "404", "413", "500", "503"),
    "grpc": ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"),
}
_KNOWN = 1.0  # spread of a rate, as a share of it, from which it is not known
STAGES = ("preprocess", "queue", "edge", "head", "cloud")


class _Series:
    """One model's series, each looked up once: labels cost more than the counting."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self._requests = cache(partial(metrics.requests.labels, model))
        self._seconds = cache(partial(metrics.seconds.labels, model))
        self._fallbacks = cache(partial(metrics.fallbacks.labels, model))
        self._stages = {stage: metrics.stages.labels(model, stage) for stage in STAGES}
        self._confidence = metrics.confidence.labels(model)
        self._bytes = [metrics.bytes.labels(model, direction) for direction in ("up", "down")]
        self._agreement = {
            agree: metrics.agreement.labels(model, str(agree).lower()) for agree in (True, False)
        }

    def record(self, outcome: Outcome) -> None:
        source, edge = outcome.source, outcome.edge
        self._requests(source, outcome.reason).inc()
        for stage, ms in outcome.timings_ms.items():
            if stage in self._stages:
                self._stages[stage].observe(ms / 1000)
        self._seconds(source).observe(outcome.timings_ms["total"] / 1000)
        if edge is not None:
            self._confidence.observe(edge.confidence)
        if source is Source.EDGE_FALLBACK:
            self._fallbacks(outcome.reason).inc()
        if outcome.bytes_up or outcome.bytes_down:
            self._bytes[0].inc(outcome.bytes_up)
            self._bytes[1].inc(outcome.bytes_down)
        if source is Source.CLOUD and edge is not None:
            self._agreement[edge.index == outcome.prediction.index].inc()


class Metrics:
    """The counters, gauges and histograms of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._series: dict[str, _Series] = {}
        self.requests = Counter(
            "tandem_requests", "Samples answered, by whose answer and why.",
            ["model", "source", "reason"], registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "tandem_request_duration_seconds", "From the arrival of a request to its answer.",
            ["model", "source"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "tandem_stage_duration_seconds", "Time of one stage: preprocess, queue, edge, head or cloud.",
            ["model", "stage"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.confidence = Histogram(
            "tandem_confidence", "Calibrated confidence of the edge model's answers.",
            ["model"], buckets=RATIOS, registry=registry,
        )  # fmt: skip
        self.threshold = Gauge(
            "tandem_threshold", "Confidence from which the edge is trusted, unless a request says.",
            ["model"], registry=registry,
        )  # fmt: skip
        self.escalations = Counter(
            "tandem_escalations", "Calls made to the cloud, by what went up.",
            ["model", "route"], registry=registry,
        )  # fmt: skip
        self.fallbacks = Counter(
            "tandem_fallbacks", "Answers given by the edge in the cloud's place, by why.",
            ["model", "reason"], registry=registry,
        )  # fmt: skip
        self.bytes = Counter(
            "tandem_escalation_bytes", "Bytes of escalations, answered or not.",
            ["model", "direction"], registry=registry,
        )  # fmt: skip
        self.agreement = Counter(
            "tandem_agreement", "Escalated samples that both answered, by whether they agree.",
            ["model", "agree"], registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "tandem_refused_requests", "Requests answered with an error, by interface and status.",
            ["api", "status"], registry=registry,
        )  # fmt: skip
        for api, statuses in REFUSALS.items():
            for status in statuses:
                self.refused.labels(api, status)
        self.inflight = Gauge("tandem_inflight_requests", "Samples being answered.", registry=registry)
        self.breaker = Gauge(
            "tandem_breaker_state", "0 closed, 1 half open, 2 open.", ["peer"], registry=registry
        )
        self.breaker_transitions = Counter(
            "tandem_breaker_transitions", "Changes of the breaker's state.", ["peer", "to"], registry=registry
        )
        self.late = Counter(
            "tandem_cloud_late_answers", "Answers of the cloud that came after their deadline.",
            ["peer"], registry=registry,
        )  # fmt: skip
        self.connected = Gauge(
            "tandem_cloud_connected", "1 while there is a connection.", ["peer"], registry=registry
        )
        self.link_round_trip = Gauge(
            "tandem_link_round_trip_seconds", "Round trip to the cloud, estimated.", registry=registry
        )
        self.link_bandwidth = Gauge(
            "tandem_link_bandwidth_bytes_per_second",
            "Rate of the link to the cloud, estimated; NaN where messages were too small to tell.",
            ["direction"], registry=registry,
        )  # fmt: skip
        self.link_age = Gauge(
            "tandem_link_estimate_age_seconds", "Since anything was heard from the cloud; infinite before.",
            registry=registry,
        )  # fmt: skip
        self.model_info = Gauge(
            "tandem_model_info", "1 for each model served.",
            ["model", "version", "variant", "precision", "digest"], registry=registry,
        )  # fmt: skip
        method = ["grpc_type", "grpc_service", "grpc_method"]
        self.grpc_started = Counter("grpc_server_started", "gRPC calls started.", method, registry=registry)
        self.grpc_handled = Counter(
            "grpc_server_handled", "gRPC calls ended, by status.", [*method, "grpc_code"], registry=registry
        )
        self.grpc_seconds = Histogram(
            "grpc_server_handling_seconds", "Time to handle a gRPC call.",
            method, buckets=SECONDS, registry=registry,
        )  # fmt: skip

    def record(self, outcome: Outcome) -> None:
        """Count one answered sample, once, under what really happened to it."""
        self._series[outcome.model.name].record(outcome)

    def escalated(self, model: str, route: Route) -> None:
        """Count one call to the cloud, at the moment it is made."""
        self.escalations.labels(model, route).inc()

    def add_model(self, model: LoadedModel) -> None:
        """Show a model, with its usual series at zero, so that the first event is a rise."""
        name, variant = model.name, model.manifest.edge_variant
        self._series[name] = _Series(self, name)
        self.model_info.labels(
            name, model.manifest.version, variant.name, variant.precision, model.digest[:12]
        ).set(1)
        self.threshold.labels(name).set(model.defaults.threshold or 0.0)
        for source, reason in (
            (Source.EDGE, "confident"),
            (Source.CLOUD, "low_confidence"),
            (Source.EDGE_FALLBACK, "cloud_unreachable"),
        ):
            self.requests.labels(name, source, reason)
        for reason in ("cloud_unreachable", "deadline", "breaker_open", "overloaded"):
            self.fallbacks.labels(name, reason)
        for route in (Route.INPUT, Route.FEATURES):
            self.escalations.labels(name, route)
        for direction in ("up", "down"):
            self.bytes.labels(name, direction)
        for agree in ("true", "false"):
            self.agreement.labels(name, agree)

    def add_link(self, heard: Callable[[], float], clock: Callable[[], float]) -> None:
        """Show the age of what is known of the link: since `heard()`, by `clock`."""
        self.link_age.set_function(lambda: clock() - heard())

    def estimated(self, link: Estimate) -> None:
        """Show what the link to the cloud is like now."""
        self.link_round_trip.set(link.round_trip)
        for way, rate, spread in (("up", link.up, link.up_spread), ("down", link.down, link.down_spread)):
            self.link_bandwidth.labels(way).set(rate if spread < _KNOWN else math.nan)

    def add_peer(self, peer: str) -> None:
        """Show a cloud that is not connected yet, its breaker closed."""
        self.connected.labels(peer).set(0)
        self.late.labels(peer)
        self.breaker.labels(peer).set(State.CLOSED)
        for state in State:
            self.breaker_transitions.labels(peer, state.name.lower())

    def breaker_changed(self, peer: str, state: State) -> None:
        """Show and count a change of the breaker's state."""
        self.breaker.labels(peer).set(state)
        self.breaker_transitions.labels(peer, state.name.lower()).inc()

    def serve(self, host: str, port: int) -> tuple[WSGIServer, int]:
        """Serve `/metrics` from a thread; the server and its port. Raises `OSError` for a taken port."""
        try:
            server, _ = start_http_server(port, host, registry=self._registry)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {host}:{port}") from error
        return server, int(server.server_port)
