"""The metrics as Prometheus reads them."""

import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from edge_node.breaker import State
from edge_node.link import Estimate
from edge_node.metrics import RATIOS, SECONDS, Metrics
from tests.edge_node.node import Node


def test_added_model_shows_its_usual_series_at_zero(edge: Node) -> None:
    digest = edge.slots.get("colors").digest[:12]
    info = {"model": "colors", "version": "1", "variant": "int8", "precision": "int8", "digest": digest}
    assert edge.value("tandem_model_info", **info) == 1
    assert edge.value("tandem_threshold", model="colors") == 0.8
    for name, labels in (
        ("tandem_requests_total", {"model": "colors", "source": "edge", "reason": "confident"}),
        ("tandem_requests_total", {"model": "colors", "source": "cloud", "reason": "low_confidence"}),
        ("tandem_fallbacks_total", {"model": "colors", "reason": "deadline"}),
        ("tandem_escalations_total", {"model": "colors", "route": "input"}),
        ("tandem_escalation_bytes_total", {"model": "colors", "direction": "up"}),
        ("tandem_agreement_total", {"model": "colors", "agree": "false"}),
    ):
        assert edge.registry.get_sample_value(name, labels) == 0


def test_breaker_and_connection_by_peer() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.add_peer("cloud:9001")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"peer": "cloud:9001", **labels})

    assert value("tandem_cloud_connected") == 0
    assert value("tandem_breaker_state") == 0
    for state in (State.OPEN, State.HALF_OPEN, State.OPEN):
        metrics.breaker_changed("cloud:9001", state)
    assert value("tandem_breaker_state") == 2
    assert value("tandem_breaker_transitions_total", to="open") == 2
    assert value("tandem_breaker_transitions_total", to="half_open") == 1
    assert value("tandem_breaker_transitions_total", to="closed") == 0


def test_the_link_and_the_age_of_what_is_known_of_it() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    now = [100.0]
    metrics.add_link(lambda: 93.0, lambda: now[0])
    metrics.estimated(Estimate(0.05, 0.1, 1e6, 0.2, 2e6, 0.3, 0.0, lost=False))
    assert registry.get_sample_value("tandem_link_round_trip_seconds") == 0.05
    rates = {
        way: registry.get_sample_value("tandem_link_bandwidth_bytes_per_second", {"direction": way})
        for way in ("up", "down")
    }
    assert rates == {"up": 1e6, "down": 2e6}
    assert registry.get_sample_value("tandem_link_estimate_age_seconds") == 7
    now[0] = 160.0
    assert registry.get_sample_value("tandem_link_estimate_age_seconds") == 67


def test_every_promised_latency_has_a_bucket_edge() -> None:
    assert {ms / 1000 for ms in (1, 2, 5, 10, 20, 50, 80, 100, 200, 500)} <= set(SECONDS)
    assert RATIOS[-1] == 1.0


def test_served_over_http_on_a_free_port(edge: Node) -> None:
    server, port = edge.metrics.serve("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        with pytest.raises(OSError, match=f"in use.*{port}"):
            edge.metrics.serve("127.0.0.1", port)
    finally:
        server.shutdown()
        server.server_close()
    assert 'tandem_requests_total{model="colors",reason="confident",source="edge"} 0.0' in text
