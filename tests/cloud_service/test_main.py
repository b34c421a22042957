"""The service as a process: what it says and how it exits. `tests/joint` has the rest of its life."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from cloud_service.settings import Settings

MakeBundle = Callable[..., Path]


def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLOUD_")}
    ports = {f"CLOUD_{name}_PORT": "0" for name in ("HTTP", "GRPC", "METRICS")}
    return subprocess.Popen(
        [sys.executable, "-m", "cloud_service", *arguments],
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
        assert f"  CLOUD_{name.upper()} " in out


def test_version() -> None:
    assert ended("--version") == (0, version("tandem-inference") + "\n", "")


def test_wrong_settings_end_it_with_a_line_for_each() -> None:
    status, _, err = ended(CLOUD_GRPC_PORT="-1", CLOUD_LOG_LEVEL="LOUD")
    assert status == 2
    assert err.startswith(
        "tandem-cloud: CLOUD_GRPC_PORT: Input should be greater than or equal to 0, got '-1'"
    )
    assert "CLOUD_LOG_LEVEL: Input should be" in err
    assert "Traceback" not in err


def test_broken_bundle_ends_it_with_the_file_and_the_rule(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "full.onnx").write_bytes(b"")
    status, _, err = ended(CLOUD_BUNDLES=str(folder))
    assert status == 1
    assert re.search(r"refusing to serve: .*full\.onnx: 0 bytes, the manifest says \d+", err)
    assert "Traceback" not in err


def test_taken_port_ends_it(make_bundle: MakeBundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, _, err = ended(CLOUD_BUNDLES=str(make_bundle()), CLOUD_GRPC_PORT=port)
    assert status == 1
    assert "cannot listen on 127.0.0.1" in err
    assert "the ports are CLOUD_HTTP_PORT" in err


def test_it_tells_its_ports_and_ends_well_when_told_to(make_bundle: MakeBundle) -> None:
    process = start(CLOUD_BUNDLES=str(make_bundle()), CLOUD_HTTPPORT="1")
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
    assert "CLOUD_HTTPPORT is set, but is no setting; did you mean CLOUD_HTTP_PORT?" in log
    assert "ready: colors, colors.image, colors.packed.means, colors.packed.pixels, colors.tail.means" in log
    assert log.rstrip().endswith("stopped")


def test_it_does_not_serve_strangers_by_accident() -> None:
    status, _, err = ended(CLOUD_HOST="0.0.0.0")
    assert status == 2
    assert "CLOUD_HOST: 0.0.0.0 is open to strangers" in err
    assert "CLOUD_TLS_CLIENT_CA" in err
    assert "CLOUD_INSECURE=true" in err
    assert "Traceback" not in err


def test_a_file_that_cannot_be_used_ends_it() -> None:
    status, _, err = ended(CLOUD_TLS_CERT="nowhere.pem", CLOUD_TLS_KEY="nowhere.key")
    assert (status, err) == (2, "tandem-cloud: CLOUD_TLS_CERT: nowhere.pem: No such file or directory\n")
