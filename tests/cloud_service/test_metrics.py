"""The metrics as Prometheus reads them."""

from prometheus_client import CollectorRegistry

from cloud_service.metrics import SECONDS, Metrics


def test_an_added_model_shows_its_series_at_zero() -> None:
    registry = CollectorRegistry()
    waiting = 0
    Metrics(registry).add_model("m", "2", "fp32", "ab" * 32, lambda: waiting)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    info = {"model": "m", "version": "2", "precision": "fp32", "digest": "abababababab"}
    assert value("tandem_model_info", **info) == 1
    assert value("tandem_cloud_requests_total", model="m", outcome="ok") == 0
    assert value("tandem_cloud_bytes_total", model="m", direction="sent") == 0
    assert value("tandem_queue_depth", model="m") == 0
    waiting = 7
    assert value("tandem_queue_depth", model="m") == 7


def test_runs_are_observed_by_model() -> None:
    registry = CollectorRegistry()
    observe = Metrics(registry).batch_observer("m")
    for samples in (1, 3, 16):
        observe(samples)
    assert registry.get_sample_value("tandem_batch_size_sum", {"model": "m"}) == 20
    assert registry.get_sample_value("tandem_batch_size_bucket", {"model": "m", "le": "4.0"}) == 2


def test_every_promised_latency_has_a_bucket_edge() -> None:
    assert {ms / 1000 for ms in (1, 2, 5, 10, 20, 50, 80, 100, 200, 500)} <= set(SECONDS)
