"""Runs a service on a disk that fails: `python -m tests.faults.shim PANEL SEED|hold|pass module`.

`pass` hands everything on, `hold` keeps what was not synced back, and a number does so too but lets some of
it reach the disk, chosen by that seed. The file PANEL says which call fails.
"""

import random
import runpy
import sys
from pathlib import Path

from tests.faults.disk import Shim
from tests.faults.panel import Panel

_KEPT: list[Shim] = []


def main(panel: str, kind: str, module: str) -> None:
    """Install the disk and become the module."""
    leak = random.Random(int(kind)) if kind.isdigit() else None
    shim = Shim(Panel(Path(panel)), hold=kind != "pass", leak=leak)
    shim.install()
    _KEPT.append(shim)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
