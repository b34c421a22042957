"""The metrics as Prometheus reads them."""

from edge_node.metrics import RATIOS, SECONDS
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


def test_every_promised_latency_has_a_bucket_edge() -> None:
    assert {ms / 1000 for ms in (1, 2, 5, 10, 20, 50, 80, 100, 200, 500)} <= set(SECONDS)
    assert RATIOS[-1] == 1.0
