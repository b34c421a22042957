"""The soak as the suite sees it: a process that was started with the first test."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.joint.services import ROOT

GRACE_S = 60.0  # to start, to look for the last time, and to end


class Soak:
    """The process of `tests.faults.soak`, from the first test of the run on."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.seconds = seconds
        self.report = folder / "soak.json"
        self.log = folder / "soak.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.soak", str(seconds), str(seed), str(self.report)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> None:
        """End it, wherever it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(GRACE_S)
