"""The metrics of the way up, as Prometheus reads them."""

from prometheus_client import CollectorRegistry

from edge_node.allowance import Allowance, Budgets
from edge_node.breaker import State
from edge_node.cloud import Attempt
from edge_node.link import Estimate
from edge_node.link_metrics import LinkMetrics


def test_breaker_and_connection_by_peer() -> None:
    registry = CollectorRegistry()
    metrics = LinkMetrics(registry)
    level = [0.0]
    metrics.add_peer("cloud:9001", lambda: level[0])

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"peer": "cloud:9001", **labels})

    assert value("tandem_cloud_connected") == 0
    assert value("tandem_breaker_state") == 0
    assert value("tandem_breaker_patience_seconds") == 0
    level[0] = 0.03
    assert value("tandem_breaker_patience_seconds") == 0.03
    assert value("tandem_cloud_throttled_total") == 0
    for kind in Attempt:
        assert value("tandem_cloud_attempts_total", kind=kind) == 0
    for state in (State.OPEN, State.HALF_OPEN, State.OPEN):
        metrics.breaker_changed("cloud:9001", state)
    assert value("tandem_breaker_state") == 2
    assert value("tandem_breaker_transitions_total", to="open") == 2
    assert value("tandem_breaker_transitions_total", to="half_open") == 1
    assert value("tandem_breaker_transitions_total", to="closed") == 0


def test_the_link_and_the_age_of_what_is_known_of_it() -> None:
    registry = CollectorRegistry()
    metrics = LinkMetrics(registry)
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


def test_what_may_be_sent_up() -> None:
    registry = CollectorRegistry()
    allowance = Allowance(Budgets(), enabled=False)
    LinkMetrics(registry).add_allowance(allowance, lambda: 0.0)
    assert registry.get_sample_value("tandem_escalation_enabled") == 0
    allowance.enabled = True
    allowance.take(0.0, Attempt.FIRST, 7)
    assert registry.get_sample_value("tandem_escalation_enabled") == 1
    assert registry.get_sample_value("tandem_escalation_day_bytes") == 7
