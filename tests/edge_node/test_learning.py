"""The outbox as the settings have it: nothing without a file, and everything on disk in the end."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edge_node.learning import Learning, most_bytes
from edge_node.settings import Settings
from tests.edge_node.outbox import WITHIN_S

pytestmark = pytest.mark.anyio


def learning(**settings: Any) -> tuple[Learning, CollectorRegistry]:
    registry = CollectorRegistry()
    return Learning(Settings.model_validate(settings), registry), registry


async def test_without_a_file_there_is_nothing() -> None:
    made, registry = learning()
    made.start()
    made.ready(["colors"])
    await made.stop_forwarding()
    await made.close(0)
    assert made.keeper is None
    assert list(registry.collect()) == []


def test_what_can_never_go_is_over_the_limit_of_a_message() -> None:
    settings = Settings.model_validate({"max_body_bytes": 100_000})
    assert most_bytes(settings) == 100_000 + (64 << 10)
    assert most_bytes(settings.model_copy(update={"max_escalation_bytes_per_day": 5000})) == 5000
    assert most_bytes(settings.model_copy(update={"max_escalation_bytes_per_day": 1 << 40})) == 100_000 + (
        64 << 10
    )


async def test_its_series_are_there_from_the_start(tmp_path: Path) -> None:
    made, registry = learning(outbox=tmp_path / "outbox.db")
    made.start()
    made.ready(["colors"])
    for reason in ("fallback", "low_confidence", "audit", "requested"):
        labels = {"model": "colors", "reason": reason}
        assert registry.get_sample_value("tandem_outbox_kept_total", labels) == 0
    for agree in ("true", "false"):
        assert registry.get_sample_value("tandem_audits_total", {"model": "colors", "agree": agree}) == 0
    for reason in ("age", "full", "too_large", "queue", "storage", "set_aside"):
        assert registry.get_sample_value("tandem_outbox_dropped_total", {"reason": reason}) == 0
    await made.close(WITHIN_S)
    assert registry.get_sample_value("tandem_outbox_writable") == 1
    assert (tmp_path / "outbox.db").exists()
