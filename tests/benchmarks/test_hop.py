"""The escalation hop, measured against a real cloud service."""

from pathlib import Path

from benchmarks.hop import OURS, UNARY, hops
from benchmarks.processes import Cores


def test_an_escalation_is_timed_without_the_model(tmp_path: Path) -> None:
    found = list(hops(Cores.of_this_machine(), tmp_path, 0.3))
    assert [(hop.what, hop.payload_bytes) for hop in found] == [
        (what, size) for size in (3000, 150_000) for what in (OURS, UNARY)
    ]
    assert all(0 < hop.p50_us <= hop.p99_us for hop in found)
