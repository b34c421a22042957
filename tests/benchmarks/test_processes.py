"""Processes for measuring: each keeps to its core, and its memory is read with that of its children."""

import os
import sys
from pathlib import Path

from benchmarks.processes import Cores, Process, awake, pinned

CORE = Cores.of_this_machine().server
MIB = 1 << 20
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "x = bytearray(150 << 20); print('up', flush=True); input()"])
"""


def test_memory_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", PARENT], CORE, tmp_path / "log", talks=True)
    try:
        assert process.popen.stdout is not None
        assert process.popen.stdout.readline() == "up\n"
        assert process.peak_bytes > 160 * MIB
    finally:
        process.stop()
    assert process.popen.returncode is not None


def test_children_keep_to_their_core_and_this_process_to_all(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    show = "import os; print(*os.sched_getaffinity(0), flush=True); input()"
    process = Process([sys.executable, "-c", show], CORE, tmp_path / "log", talks=True)
    try:
        assert process.popen.stdout is not None
        assert process.popen.stdout.readline() == f"{CORE}\n"
    finally:
        process.stop()
    with pinned(CORE), awake(CORE):
        assert os.sched_getaffinity(0) == {CORE}
    assert os.sched_getaffinity(0) == before
