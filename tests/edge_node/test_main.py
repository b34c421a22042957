"""The node as a process: what it says and how it exits. `tests/joint` has the rest of its life."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from edge_node.settings import Settings

MakeBundle = Callable[..., Path]


def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_")}
    ports = {f"EDGE_{name}_PORT": "0" for name in ("HTTP", "GRPC", "METRICS")}
    return subprocess.Popen(
        [sys.executable, "-m", "edge_node", *arguments],
        env={**environment, **ports, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*arguments: str, **settings: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    process = start(*arguments, **settings)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_help_lists_every_setting() -> None:
    status, out, _ = ended("--help")
    assert status == 0
    for name in Settings.model_fields:
        assert f"  EDGE_{name.upper()} " in out


def test_version() -> None:
    assert ended("--version") == (0, version("tandem-inference") + "\n", "")


def test_wrong_settings_end_it_with_a_line_for_each() -> None:
    status, _, err = ended(EDGE_GRPC_PORT="-1", EDGE_LOG_LEVEL="LOUD")
    assert status == 2
    assert err.startswith("tandem-edge: EDGE_GRPC_PORT: Input should be greater than or equal to 0, got '-1'")
    assert "EDGE_LOG_LEVEL: Input should be" in err
    assert "Traceback" not in err


def test_broken_bundle_ends_it_with_the_file_and_the_rule(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "edge-int8.onnx").write_bytes(b"")
    status, _, err = ended(EDGE_BUNDLES=str(folder))
    assert status == 1
    assert re.search(r"refusing to serve: .*edge-int8\.onnx: 0 bytes, the manifest says \d+", err)
    assert "Traceback" not in err


def test_taken_port_ends_it(make_bundle: MakeBundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, _, err = ended(EDGE_BUNDLES=str(make_bundle()), EDGE_GRPC_PORT=port)
    assert status == 1
    assert "cannot listen on 127.0.0.1" in err
    assert "the ports are EDGE_HTTP_PORT" in err


def test_it_tells_its_ports_and_ends_well_when_told_to(make_bundle: MakeBundle) -> None:
    process = start(EDGE_BUNDLES=str(make_bundle()), EDGE_HTTPPORT="1", EDGE_CLOUD="")
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if " ready: " in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.communicate()
    log = "".join(lines)
    ports = re.search(r"http_port=(\d+) grpc_port=(\d+) metrics_port=(\d+)", log)
    assert ports is not None
    assert len({*ports.groups(), "0"}) == 4
    assert "EDGE_HTTPPORT is set, but is no setting; did you mean EDGE_HTTP_PORT?" in log
    assert "ready: colors\n" in log
    assert "no cloud: EDGE_CLOUD is empty" in log
    assert log.rstrip().endswith("stopped")


def test_it_does_not_serve_strangers_by_accident() -> None:
    status, _, err = ended(EDGE_HOST="0.0.0.0")
    assert status == 2
    assert "EDGE_HOST: 0.0.0.0 is open to strangers" in err
    assert "EDGE_API_KEYS" in err
    assert "EDGE_INSECURE=true" in err
    assert "Traceback" not in err


def test_a_file_that_cannot_be_used_ends_it() -> None:
    status, _, err = ended(EDGE_TLS_CERT="nowhere.pem", EDGE_TLS_KEY="nowhere.key")
    assert (status, err) == (2, "tandem-edge: EDGE_TLS_CERT: nowhere.pem: No such file or directory\n")
