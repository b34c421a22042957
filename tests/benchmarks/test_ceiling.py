"""What the load generator can send at most."""

from pathlib import Path

from benchmarks.ceiling import ceilings
from benchmarks.processes import Cores

CORE = Cores.of_this_machine().server


def test_the_load_generator_has_a_ceiling(tmp_path: Path) -> None:
    found = list(ceilings(CORE, tmp_path, 0.2))
    assert [(one.protocol, one.clients) for one in found] == [
        ("http", 1),
        ("http", 8),
        ("grpc", 1),
        ("grpc", 8),
    ]
    assert all(one.per_s > 100 and one.p50_us > 0 for one in found)
