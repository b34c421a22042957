"""The environment of Triton's client: made once for each content of the lock file, kept under `.cache/`.

Its protobuf is older than ours and its stubs have the same names, so that it cannot share a process with us.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = Path(__file__).parent / "requirements.lock"
OFFLINE = "TANDEM_OFFLINE"


def client_python() -> Path:
    """The interpreter that has `tritonclient`; made when it is not there yet, which takes half a minute.

    Skips the test where `TANDEM_OFFLINE=1` says that nothing can be installed; fails it, with pip's last
    words, where that turns out to be so.
    """
    kind = f"{sys.version}\n{sys.platform}".encode()
    digest = hashlib.sha256(LOCK.read_bytes() + kind).hexdigest()[:16]
    home = ROOT / ".cache" / "conformance" / digest
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists():
        return python
    if os.environ.get(OFFLINE) == "1":
        pytest.skip(f"{OFFLINE}=1: the environment of {LOCK.name} is not there and must not be made")
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests must not make it at once
        if not ready.exists():
            _call(sys.executable, "-m", "venv", "--clear", str(home))
            pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _call(*pip, "--require-hashes", "--only-binary=:all:", "-r", str(LOCK))
            ready.touch()
    return python


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        pytest.fail(
            f"cannot make the environment of {LOCK} ({OFFLINE}=1 skips these tests):\n"
            f"{' '.join(command)} ended with {done.returncode}\n{words}"
        )
