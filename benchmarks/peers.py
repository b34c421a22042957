"""What a user would otherwise pick: each peer in an environment of its own, with the same model file.

The environments are made in `.cache/peers` by the first run and kept. Every peer has one worker and the
same session options; where it takes raw tensors it is asked with them, too.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ways
from benchmarks.models import Served
from benchmarks.processes import ROOT, Failed, Process, free_port
from benchmarks.systems import Server
from benchmarks.ways import Way

ENVIRONMENTS = ROOT / ".cache" / "peers"
RUNTIME = "onnxruntime==1.31.1"
_INSTALL_S = 900.0
_DONE = ".installed"

Make = Callable[[Served], Way]


@dataclass(frozen=True)
class Peer:
    """One peer: what is installed, how its adapter is started, and how it is asked.

    `command` follows the environment's Python; `{port}` in it stands for the port of HTTP.
    """

    packages: Sequence[str]
    command: Sequence[str]
    makes: Sequence[Make]


def _adapter(name: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.peer_servers.for_{name}")


PEERS: dict[str, Peer] = {
    "MLServer 1.7": Peer(
        ("mlserver==1.7.1", "numpy==2.4.6", "grpcio==1.85.1"),
        _adapter("mlserver"),
        (ways.oip_json, ways.grpc_infer),
    ),
    "KServe 0.21": Peer(
        ("kserve==0.21.0", "numpy==2.4.6", "grpcio==1.85.1"),
        _adapter("kserve"),
        (ways.oip_binary, ways.oip_json, ways.grpc_infer),
    ),
    "LitServe 0.2": Peer(
        ("litserve==0.2.19", "numpy==2.4.6"),
        _adapter("litserve"),
        (
            lambda model: ways.json_values(model, "/predict", "values"),
            lambda model: ways.json_base64(model, "/predict", "base64"),
        ),
    ),
    "BentoML 1.4": Peer(
        ("bentoml==1.4.39", "numpy==2.4.6"),
        (
            *("-m", "bentoml", "serve", "benchmarks.peer_servers.for_bentoml:Classifier"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        (
            lambda model: ways.json_values(model, "/values", "values"),
            lambda model: ways.json_base64(model, "/encoded", "content"),
        ),
    ),
    "Triton (pytriton 0.7)": Peer(
        ("nvidia-pytriton==0.7.0", "numpy==1.26.4", "grpcio==1.85.1"),
        _adapter("triton"),
        (ways.oip_binary, ways.oip_json, ways.grpc_infer),
    ),
}


def install(names: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """Make the environments that are not there; by peer, why one could not be made."""
    missing = {}
    for name in names:
        try:
            _install(name, say)
        except (subprocess.SubprocessError, OSError) as error:
            told = getattr(error, "stderr", "") or str(error)
            missing[name] = f"cannot be installed: {told.strip().splitlines()[-1][:200]}"
            say(f"{name} {missing[name]}")
    return missing


def _folder(name: str) -> Path:
    return ENVIRONMENTS / name.partition(" ")[0].lower()


def _install(name: str, say: Callable[[str], None]) -> None:
    folder, packages = _folder(name), "\n".join([*PEERS[name].packages, RUNTIME])
    done = folder / _DONE
    if done.exists() and done.read_text() == packages:
        return
    say(f"installing {name}")
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "pip"), "install", "--quiet", *packages.splitlines()],
    )
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
    done.write_text(packages)


def start(name: str, model: Served, core: int, logs: Path) -> Server:
    """The peer with `model`, ready. Raises `Failed` with the reason when it cannot be started."""
    peer = PEERS[name]
    http_port, grpc_port = free_port(), free_port()
    python = _folder(name) / "bin" / "python"
    command = [str(python), *(word.format(port=http_port) for word in peer.command)]
    variables = {
        "PEER_FILE": str(model.file),
        "PEER_MODEL": model.name,
        "PEER_HTTP_PORT": str(http_port),
        "PEER_GRPC_PORT": str(grpc_port),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "BENTOML_DO_NOT_TRACK": "true",
        # Triton's own process must find the Python library that its environment is made of.
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
    }
    log = logs / f"{_folder(name).name}-{model.name}.log"
    try:
        process = Process(command, core, log, variables)
    except OSError as error:
        raise Failed(f"{name}: {error}") from error
    return Server(name, process, [make(model) for make in peer.makes], http_port, grpc_port)
