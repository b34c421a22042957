"""An outbox alone in its process, opened and closed for a few samples at a time: so that a disk can fail at
every call, the first and the last ones too.

`OUTBOX=path python -m tests.faults.shim PANEL pass tests.faults.outbox_process`
"""

import os
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from secrets import token_hex

from prometheus_client import CollectorRegistry

from edge_node.keeping import Reason
from edge_node.outbox import Outbox
from edge_node.outbox_metrics import OutboxMetrics
from edge_node.sample_store import Form, Sample

SAMPLES = 2
_RETRY_S = 0.02
_PATIENCE_S = 0.2
_CLOSE_S = 5.0


def sample() -> Sample:
    """A sample that somebody waits for."""
    return Sample(
        token_hex(16), time.time(), Reason.REQUESTED, True, "colors", "1", "0" * 64, Form.IMAGE, bytes(3000),
        None, 0.5,
    )  # fmt: skip


def visit(path: Path) -> str:
    """Open the outbox, keep samples one after the other and close it: the errors it has counted, and the keys
    that it has acknowledged."""
    registry = CollectorRegistry()
    metrics = OutboxMetrics(registry)
    outbox = Outbox(path, metrics, max_bytes=64 << 20, max_age_s=3600, retry_s=_RETRY_S)
    outbox.start()
    kept = []
    for one in [sample() for _ in range(SAMPLES)]:
        done, _ = wait([outbox.put(one)], _PATIENCE_S)
        kept += [one.key for future in done if future.result()]
    outbox.close(_CLOSE_S)
    errors = registry.get_sample_value("tandem_outbox_errors_total") or 0
    return " ".join([f"{errors:.0f}", *kept])


def main() -> None:
    """One visit for each line that comes in."""
    for _ in sys.stdin:
        sys.stdout.write(f"{visit(Path(os.environ['OUTBOX']))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
