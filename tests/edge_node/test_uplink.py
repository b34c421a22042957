"""The way up as the settings have it."""

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edge_node.allowance import Allowance
from edge_node.cloud import Attempt
from edge_node.link_metrics import LinkMetrics
from edge_node.settings import Settings
from edge_node.uplink import allow, breaker_of, connect
from inference_core.errors import AllowanceSpent, SwitchedOff

pytestmark = pytest.mark.anyio
PEER = "127.0.0.1:1"


def given(**changes: Any) -> tuple[Settings, CollectorRegistry, LinkMetrics]:
    registry = CollectorRegistry()
    return Settings(**changes), registry, LinkMetrics(registry)


async def test_no_cloud_is_none() -> None:
    settings, _, metrics = given(cloud="")
    assert connect(settings, allow(settings, metrics), metrics) is None


async def test_each_cloud_has_its_series_from_the_start() -> None:
    settings, registry, metrics = given(cloud="a:1,b:2")
    clouds = connect(settings, allow(settings, metrics), metrics)
    assert clouds is not None
    for peer in ("a:1", "b:2"):
        assert registry.get_sample_value("tandem_breaker_state", {"peer": peer}) == 0
        assert registry.get_sample_value("tandem_breaker_patience_seconds", {"peer": peer}) == 0
        labels = {"peer": peer, "kind": "retry"}
        assert registry.get_sample_value("tandem_cloud_attempts_total", labels) == 0
    await clouds.close()


@pytest.mark.parametrize(
    "limit",
    [
        {"min_escalation_interval_ms": 1000},
        {"max_escalations_per_s": 1},
        {"max_escalation_bytes_per_s": 10},
        {"max_escalation_bytes_per_day": 20},
    ],
)
def test_each_limit_limits(limit: dict[str, int]) -> None:
    settings, _, metrics = given(**limit)
    allowance = allow(settings, metrics)
    allowance.take(0.0, Attempt.FIRST, 20)
    with pytest.raises(AllowanceSpent):
        allowance.take(0.5, Attempt.FIRST, 10)


def test_the_switch() -> None:
    settings, registry, metrics = given(escalate=False)
    allowance: Allowance = allow(settings, metrics)
    with pytest.raises(SwitchedOff):
        allowance.check(0.0)
    assert registry.get_sample_value("tandem_escalation_enabled") == 0


def test_an_outage_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    settings, registry, metrics = given(breaker_failures=1, breaker_open_ms=10)
    caplog.set_level("INFO", "edge_node.uplink")
    breaker = breaker_of(PEER, settings, metrics)
    permit = breaker.allow(0.2)
    assert permit is not None
    breaker.failure(permit, 0.2, 0.0)
    for now in range(1, 20):
        trial = breaker.trial(now)
        assert trial is not None
        breaker.failure(trial, 0.2, now)
    trial = breaker.trial(20.0)
    assert trial is not None
    breaker.success(trial, 0.01, 20.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    labels = {"peer": PEER, "to": "half_open"}
    assert registry.get_sample_value("tandem_breaker_transitions_total", labels) == 20
