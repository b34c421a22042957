"""What other programs do on this machine is seen, and what this one does is not taken for it."""

import subprocess
import sys
import time

from tests.faults.others import Others

_SPIN = "import time; end = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"


def test_own_work_and_that_of_children_is_not_that_of_others() -> None:
    others = Others()
    subprocess.run([sys.executable, "-c", _SPIN], check=True)
    ended = others.cores
    others = Others()
    with subprocess.Popen([sys.executable, "-c", _SPIN]):
        began = time.monotonic()
        while time.monotonic() - began < 0.3:
            time.sleep(0.01)
        running = others.cores  # not ended yet, so it is one of the others
    assert running > ended + 0.3 or ended > 0.5, "or the machine is busy with other things anyway"
