"""An outbox over a real file for tests, and samples to put into it."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from edge_node.keeping import Reason
from edge_node.outbox import Outbox
from edge_node.outbox_metrics import OutboxMetrics
from edge_node.outcome import EdgeAnswer
from edge_node.sample_store import Form, Sample
from tests.joint.services import eventually

START = 1_000_000.0
WITHIN_S = 10.0


def sample(
    key: str = "0" * 32,
    *,
    kept_at: float = START,
    reason: Reason = Reason.FALLBACK,
    promised: bool = False,
    size: int = 100,
    edge: EdgeAnswer | None = None,
) -> Sample:
    """A sample whose payload is so many bytes."""
    payload = b"\x07" * size
    return Sample(key, kept_at, reason, promised, "colors", "1", "d" * 64, Form.TENSOR, payload, edge, 0.8)


class Box:
    """An outbox in the file `path`, its metrics, and a clock."""

    def __init__(self, path: Path, **changes: Any) -> None:
        self.path = path
        self.now = START
        self._registry = CollectorRegistry()
        self.metrics = OutboxMetrics(self._registry)
        options = {"max_bytes": 1 << 20, "max_age_s": 1000.0, "retry_s": 0.02} | changes
        self.outbox = Outbox(path, self.metrics, clock=lambda: self.now, **options)

    def value(self, name: str, **labels: str) -> float:
        """The value of the metric `tandem_outbox_<name>`, or 0."""
        return self._registry.get_sample_value(f"tandem_outbox_{name}", labels) or 0.0

    def comes_to(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has this value."""
        eventually(lambda: self.value(name, **labels) == value, WITHIN_S, f"{name} is {value}")

    def rows(self, query: str = "SELECT key FROM samples ORDER BY number") -> list[tuple[Any, ...]]:
        """What is in the file."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()


@contextlib.contextmanager
def box(path: Path, **changes: Any) -> Iterator[Box]:
    """An outbox that writes, and is closed with the block."""
    made = Box(path, **changes)
    made.outbox.start()
    try:
        yield made
    finally:
        assert made.outbox.close(WITHIN_S)
