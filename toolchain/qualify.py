"""The first run of a model, in a process of its own with limits on memory and time.

A graph can pass every check and still take all memory, run for ever or crash ONNX Runtime: a constant of
2^40 elements takes a few bytes in a file. What has not been qualified is not run in this process.
"""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_core.engine import Engine
from inference_core.errors import InvalidInput, ModelError

_MODEL, _INPUTS = "model.onnx", "inputs.npz"
_REFUSED = 3  # the child's exit status when it can say why
_PACKAGES = Path(__file__).resolve().parents[1]
# What ONNX Runtime says of itself before it says what is wrong.
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+?:\d+ (?:[^()]*\([^()]*\) )?")
_TOO_LARGE = re.compile(r"running (\w+) node.*requested buffer of size (\d+)", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """What one run may take: bytes of address space, and seconds."""

    memory_bytes: int = 6 << 30
    seconds: float = 120.0


@dataclass(frozen=True)
class Qualified:
    """A run that ended well: its outputs by name, and the process's peak of memory in bytes."""

    outputs: Mapping[str, NDArray[Any]]
    memory_bytes: int


def qualify(
    model: bytes, inputs: Mapping[str, NDArray[Any]], *, name: str, limits: Limits | None = None
) -> Qualified:
    """Load `model`, the bytes of an ONNX file, and run it once on `inputs`, in a process of its own.

    Raises `ModelError`, which says why, when it cannot be loaded or run, crashes, or goes over the limits.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="tandem-qualify-") as folder:
        (Path(folder) / _MODEL).write_bytes(model)
        np.savez(Path(folder) / _INPUTS, **inputs)  # type: ignore[arg-type]
        # -P: a file of the user's called numpy.py is not imported from the current folder.
        command = [sys.executable, "-P", "-m", "toolchain.qualify", folder, name, str(limits.memory_bytes)]
        paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            ended = subprocess.run(  # noqa: S603
                command,
                capture_output=True,
                timeout=limits.seconds,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{name}: one run took over {limits.seconds:g} seconds, the limit; use a smaller model"
            ) from None
        if ended.returncode != 0:
            raise ModelError(_reason(name, ended, limits))
        with np.load(io.BytesIO(ended.stdout), allow_pickle=False) as archive:
            outputs = {key: archive[key] for key in archive.files}
    memory = int(outputs.pop(" memory"))
    return Qualified(outputs, memory)


def _reason(name: str, ended: subprocess.CompletedProcess[bytes], limits: Limits) -> str:
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    limit = f"the limit is {limits.memory_bytes >> 20} MiB of memory"
    if ended.returncode == _REFUSED and said:
        reason = str(json.loads(said[-1]))
        large = _TOO_LARGE.search(reason)
        if large:
            return (
                f"{name}: {large[1]} asks for {int(large[2]) >> 20} MiB at once, {limit}; use a smaller model"
            )
        return " ".join(_NOISE.sub("", reason).split())
    last = f": {said[-1]}" if said else ""
    if ended.returncode < 0:
        return f"{name}: the run was ended by {signal.Signals(-ended.returncode).name}, {limit}{last}"
    return f"{name}: the run failed, {limit}{last}"


def _main(folder: str, name: str, memory_bytes: str) -> int:
    """The child: limits itself, runs, writes an archive of the outputs to standard output."""
    limit = int(memory_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with np.load(Path(folder) / _INPUTS, allow_pickle=False) as archive:
        inputs = {key: archive[key] for key in archive.files}
    try:
        outputs = Engine((Path(folder) / _MODEL).read_bytes(), name=name).run(inputs)
    except (ModelError, InvalidInput) as error:
        sys.stderr.write(json.dumps(str(error)))
        return _REFUSED
    except MemoryError:
        sys.stderr.write(json.dumps(f"{name}: needs more memory than the limit, {limit >> 20} MiB"))
        return _REFUSED
    peak = _peak_bytes()
    result = io.BytesIO()
    np.savez(result, **outputs, **{" memory": np.int64(peak)})  # type: ignore[arg-type]
    sys.stdout.buffer.write(result.getvalue())
    return 0


def _peak_bytes() -> int:
    """The most memory that this process has held. What `getrusage` says counts its parent before `exec`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
