"""The first run of a model, in a process of its own with limits on memory and time.

A graph can pass every check and still take all memory, run for ever or crash ONNX Runtime: a constant of
2^40 elements takes a few bytes in a file. What has not been qualified is not run in this process.
"""

import ctypes
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from inference_core.engine import Engine
from inference_core.errors import InvalidInput, ModelError

_REFUSED = 3  # the child's exit status when it can say why
_PACKAGES = str(Path(__file__).resolve().parents[1])
# Only what this process itself would import: nothing from the current folder, no start-up files.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import inference_core.qualify as q"
# Without what else is in the environment: tokens, and names of files that hold such.
_LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h: when the parent goes, so does this
_AT = b"at "  # before the number of the trial that begins
_REACHED = re.compile(rb"at (\d{1,6})")
_MEMORY = " memory"  # among the outputs: no tensor's name begins with a blank
_TOO_LARGE = re.compile(r"running (\w+) node.*requested buffer of size (\d+)", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """What one run may take: bytes of address space, and seconds."""

    memory_bytes: int = 6 << 30
    seconds: float = 120.0


@dataclass(frozen=True)
class Trial:
    """A model, the bytes of an ONNX file, and what it is run on; `name` is how errors call it."""

    name: str
    model: bytes
    inputs: Mapping[str, NDArray[Any]]


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
    return _qualify([Trial(name, model, inputs)], limits or Limits(), outputs=True)


def qualify_all(trials: Sequence[Trial], limits: Limits | None = None) -> None:
    """`qualify` for several models, one after the other in one process, within the limits together, and
    without their outputs: those could fill the memory here. Raises `ModelError` for the first that does not
    pass.
    """
    _qualify(trials, limits or Limits(), outputs=False)


def _qualify(trials: Sequence[Trial], limits: Limits, *, outputs: bool) -> Qualified:
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        "-c",
        f"{_CHILD}; q.child()",
        json.dumps([_PACKAGES, *sys.path]),
    ]
    with _anonymous_file() as given:
        _write(given, trials, limits, outputs)
        given.seek(0)
        try:
            ended = subprocess.run(  # noqa: S603
                command,
                stdin=given,
                capture_output=True,
                timeout=limits.seconds,
                check=False,
                env={name: os.environ[name] for name in _LIBRARIES if name in os.environ},
            )
        except subprocess.TimeoutExpired as late:
            name = trials[_reached(late.stderr or b"")].name
            raise ModelError(
                f"{name}: one run took over {limits.seconds:g} seconds, the limit; use a smaller model"
            ) from None
    if ended.returncode != 0:
        raise ModelError(_reason(trials[_reached(ended.stderr)].name, ended, limits))
    told = _unpacked(ended.stdout)
    memory = int(told.pop(_MEMORY))
    return Qualified(told, memory)


def _anonymous_file() -> IO[bytes]:
    """In memory where the system can: a service may have no folder that it may write to."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("trials"), "w+b")
    return tempfile.TemporaryFile()


def _write(out: IO[bytes], trials: Sequence[Trial], limits: Limits, outputs: bool) -> None:
    """Limits and what is wanted, then each trial: a line with its name and sizes, the model, the inputs."""
    out.write(json.dumps([limits.memory_bytes, limits.seconds, len(trials), outputs]).encode() + b"\n")
    for trial in trials:
        inputs = _packed(trial.inputs)
        sizes = [trial.name, len(trial.model), len(inputs)]
        out.write(json.dumps(sizes).encode() + b"\n" + trial.model + inputs)
    out.flush()


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    # By numbers: models may call a tensor as NumPy calls an argument of its own, or a member of the archive.
    out = io.BytesIO()
    np.savez(out, np.array(json.dumps(list(arrays))), *arrays.values())
    return out.getvalue()


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        names, *arrays = (archive[f"arr_{number}"] for number in range(len(archive.files)))
    return dict(zip(json.loads(str(names)), arrays, strict=True))


def _reached(said: bytes) -> int:
    """The number of the trial that the child was at."""
    return max((int(match[1]) for match in map(_REACHED.fullmatch, said.splitlines()) if match), default=0)


def _reason(name: str, ended: subprocess.CompletedProcess[bytes], limits: Limits) -> str:
    lines = (line for line in ended.stderr.strip().splitlines() if not _REACHED.fullmatch(line))
    said = [line.decode(errors="replace") for line in lines]
    limit = f"the limit is {limits.memory_bytes >> 20} MiB of memory"
    if ended.returncode == _REFUSED and said:
        reason = str(json.loads(said[-1]))
        large = _TOO_LARGE.search(reason)
        if large:
            return (
                f"{name}: {large[1]} asks for {int(large[2]) >> 20} MiB at once, {limit}; use a smaller model"
            )
        return reason
    last = f": {said[-1]}" if said else ""
    if ended.returncode < 0:
        return f"{name}: the run was ended by {signal.Signals(-ended.returncode).name}, {limit}{last}"
    return f"{name}: the run failed, {limit}{last}"


def child() -> None:
    """In the process of its own: limit it, run the trials, write an archive of the last outputs if wanted."""
    sys.exit(_run_trials(sys.stdin.buffer))


def _run_trials(given: IO[bytes]) -> int:
    memory_bytes, seconds, count, wanted = json.loads(given.readline())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file as large as its memory
    # The parent keeps the time; this is for where it can go and leave this behind.
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds * (os.cpu_count() or 1)) + 2,) * 2)
    outputs: Mapping[str, NDArray[Any]] = {}
    for number in range(count):
        name, *sizes = json.loads(given.readline())
        os.write(2, _AT + b"%d\n" % number)
        try:
            model, inputs = (given.read(size) for size in sizes)
            outputs = Engine(model, name=name).run(_unpacked(inputs))
        except (ModelError, InvalidInput, MemoryError) as error:
            reason = str(error)
            if isinstance(error, MemoryError) or "bad_alloc" in reason:
                reason = f"{name}: needs more memory than the limit, {memory_bytes >> 20} MiB"
            sys.stderr.write("\n" + json.dumps(reason))  # whatever a library has said before
            return _REFUSED
    told = {**(outputs if wanted else {}), _MEMORY: np.array(_peak_bytes())}
    sys.stdout.buffer.write(_packed(told))
    return 0


def _peak_bytes() -> int:
    """The most memory that this process has held. What `getrusage` says counts its parent before `exec`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
