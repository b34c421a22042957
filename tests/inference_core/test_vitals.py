"""The metrics of the process itself."""

from prometheus_client import CollectorRegistry

from inference_core.vitals import SWAPS, Vitals
from inference_core.watchdog import Event


def test_every_series_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    vitals = Vitals(registry)
    vitals.add_model("colors")
    for name in ("runs_abandoned", "runs_stuck", "engine_restarts"):
        assert registry.get_sample_value(f"tandem_{name}_total", {"model": "colors"}) == 0
    for result in SWAPS:
        assert registry.get_sample_value("tandem_model_swaps_total", {"result": result}) == 0
    assert registry.get_sample_value("tandem_loop_lag_seconds_count") == 0
    assert registry.get_sample_value("tandem_loop_lag_recent_seconds") == 0


def test_each_event_has_its_counter() -> None:
    registry = CollectorRegistry()
    vitals = Vitals(registry)
    for count, event in enumerate(Event, 1):
        for _ in range(count):
            vitals.happened(event, "colors")
    counters = ("runs_abandoned", "runs_stuck", "engine_restarts")
    values = [registry.get_sample_value(f"tandem_{name}_total", {"model": "colors"}) for name in counters]
    assert values == [1, 2, 3]
