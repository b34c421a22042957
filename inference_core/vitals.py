"""Metrics of the process itself: how late its loop is, what became of its runs, engines and swaps."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inference_core.connections import Connections
from inference_core.watchdog import Event

_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SWAPS = ("ok", "unchanged", "refused")


class Vitals:
    """The counters, gauges and histograms that tell how the service itself is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.loop_lag = Histogram(
            "tandem_loop_lag_seconds", "How late the event loop comes to what is due.",
            buckets=_LAGS, registry=registry,
        )  # fmt: skip
        self.recent_lag = Gauge(
            "tandem_loop_lag_recent_seconds",
            "Largest lag of the last second or so; while the loop is stuck, since when.", registry=registry,
        )  # fmt: skip
        self.tasks = Gauge("tandem_loop_tasks", "Tasks of the event loop.", registry=registry)
        self.runs_abandoned = Counter(
            "tandem_runs_abandoned", "Model runs ended because they took too long.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.runs_stuck = Counter(
            "tandem_runs_stuck", "Model runs that could not be ended; their threads were given up.",
            ["model"], registry=registry,
        )  # fmt: skip
        self.engine_restarts = Counter(
            "tandem_engine_restarts", "New sessions of engines that failed or hung.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.model_swaps = Counter(
            "tandem_model_swaps", "Reloads of the bundles, by what came of them: ok, unchanged or refused.",
            ["result"], registry=registry,
        )  # fmt: skip
        self.connections = Gauge(
            "tandem_http_connections", "HTTP connections that are open.", registry=registry
        )
        self.displaced = Counter(
            "tandem_http_connections_displaced", "HTTP connections ended to make room for new ones.",
            registry=registry,
        )  # fmt: skip
        self._by_event = {
            Event.ABANDONED: self.runs_abandoned,
            Event.STUCK: self.runs_stuck,
            Event.RESTARTED: self.engine_restarts,
        }
        for result in SWAPS:
            self.model_swaps.labels(result)

    def show_connections(self, connections: Connections) -> None:
        """Show how many of these are open."""
        self.connections.set_function(lambda: connections.count)

    def add_model(self, name: str) -> None:
        """Show a model's series at zero, so that the first event is a rise."""
        for counter in self._by_event.values():
            counter.labels(name)

    def happened(self, event: Event, model: str) -> None:
        """Count what happened to a run or an engine; from any thread."""
        self._by_event[event].labels(model).inc()
