"""The metrics of a node's requests and models, declared once, on a registry that is passed in.

Those of its way to the cloud are in `link_metrics`.
"""

from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edge_node.admission import REASONS, Admission
from edge_node.model_slot import LoadedModel
from edge_node.outcome import Outcome
from edge_node.policy import Route, Source
from edge_node.runner import Runner
from inference_core.priority import Priority

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.08, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
RATIOS = tuple(step / 20 for step in range(1, 21))
# Shown from the start, so that the first refusal is a rise.
REFUSALS = {
    "device": ("400", "401", "403", "404", "413", "429", "500", "503"),
    "open_inference": ("400", "401", "403", "404", "413", "429", "500", "503"),
    "grpc": (
        *("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"),
        *("UNAUTHENTICATED", "PERMISSION_DENIED"),
    ),
}
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
        self.inflight_limit = Gauge(
            "tandem_inflight_limit", "Samples that may be at work here, by how late answers are.",
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "tandem_waiting_samples", "Samples that wait for a run here.", ["priority"], registry=registry
        )
        self.shed = Counter(
            "tandem_shed_requests", "Requests turned away because there was too much to do, by why.",
            ["priority", "reason"], registry=registry,
        )  # fmt: skip
        self._shed = cache(self.shed.labels)
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

    def add_admission(self, admission: Admission, runner: Runner) -> None:
        """Show what is let in, what waits and what is turned away."""
        self.inflight.set_function(lambda: admission.inflight)
        self.inflight_limit.set_function(lambda: admission.limit)
        for priority in Priority:
            self.waiting.labels(priority).set_function(partial(runner.count, priority))
            for reason in REASONS:
                self.shed.labels(priority, reason)

    def declined(self, priority: Priority, reason: str) -> None:
        """Count a request for which there was no room, or no time."""
        self._shed(priority, reason).inc()

    def escalated(self, model: str, route: Route) -> None:
        """Count one call to the cloud, at the moment it is made."""
        self.escalations.labels(model, route).inc()

    def remove_model(self, model: LoadedModel) -> None:
        """Show a model no more in the version that it has; what it has counted stays."""
        self.model_info.remove(*_info(model))
        self.threshold.remove(model.name)

    def add_model(self, model: LoadedModel) -> None:
        """Show a model, with its usual series at zero, so that the first event is a rise."""
        name = model.name
        self._series[name] = _Series(self, name)
        self.model_info.labels(*_info(model)).set(1)
        self.threshold.labels(name).set(model.defaults.threshold or 0.0)
        for source, reason in (
            (Source.EDGE, "confident"),
            (Source.CLOUD, "low_confidence"),
            (Source.EDGE_FALLBACK, "cloud_unreachable"),
        ):
            self.requests.labels(name, source, reason)
        for reason in (
            "cloud_unreachable", "deadline", "breaker_open", "overloaded", "throttled", "escalation_budget",
            "switched_off",
        ):  # fmt: skip
            self.fallbacks.labels(name, reason)
        for route in (Route.INPUT, Route.FEATURES):
            self.escalations.labels(name, route)
        for direction in ("up", "down"):
            self.bytes.labels(name, direction)
        for agree in ("true", "false"):
            self.agreement.labels(name, agree)


def _info(model: LoadedModel) -> tuple[str, ...]:
    """The labels of `tandem_model_info`."""
    variant = model.manifest.edge_variant
    return model.name, model.manifest.version, variant.name, variant.precision, model.digest[:12]
