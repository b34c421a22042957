"""Both services, as processes, under `tritonclient` over HTTP and gRPC: one test for each call of it.

The checks are functions of `http_checks` and `grpc_checks`, which run in the client's own environment.
"""

import ast
import contextlib
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from protos import open_inference_pb2 as oip
from tests.bundles import SURE, picture, write_bundle
from tests.conformance.environment import LOCK, ROOT, client_python
from tests.joint.services import Service, Services

# The first test of all may have to make the environment.
pytestmark = pytest.mark.timeout(600)

RUN_S = 60.0
SCRIPTS = ("http_checks", "grpc_checks")
SERVICES = ("edge", "cloud")


def checks(script: str) -> list[str]:
    """The names of the checks in a script, which cannot be imported here."""
    tree = ast.parse((Path(__file__).parent / f"{script}.py").read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in functions if name.startswith("check_")]


@pytest.fixture(scope="module")
def python() -> Path:
    return client_python()


@pytest.fixture(scope="module")
def running(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """An edge node and its cloud."""
    folder = tmp_path_factory.mktemp("conformance")
    bundle = write_bundle(folder / "colors")
    with Services(folder) as services:
        cloud = services.cloud(bundle)
        # The deadline is for a machine that does other things too; nothing here is about time.
        edge = services.edge(bundle, cloud.ports[1], deadline_ms=20_000)
        yield {"edge": edge.wait_ready(), "cloud": cloud.wait_ready()}


@pytest.fixture(scope="module")
def reports(python: Path, running: dict[str, Service]) -> "Reports":
    return Reports(python, running)


class Reports:
    """What came of each check of a script on a service; each script runs once on each."""

    def __init__(self, python: Path, running: dict[str, Service]) -> None:
        self._python = python
        self._running = running
        self.of = cache(self._of)

    def _of(self, script: str, service: str) -> dict[str, str | None]:
        http, grpc, _ = self._running[service].ports
        target = {
            "service": service,
            "http": f"127.0.0.1:{http}",
            "grpc": f"127.0.0.1:{grpc}",
            "image": picture(SURE).hex(),
            "proto": oip.DESCRIPTOR.serialized_pb.hex(),
        }
        command = [str(self._python), "-W", "ignore", "-m", f"tests.conformance.{script}", json.dumps(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S, check=False)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {line["check"]: line["error"] for line in lines}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("script", "check"), [(script, name) for script in SCRIPTS for name in checks(script)]
)
def test_call(reports: Reports, service: str, script: str, check: str) -> None:
    found = reports.of(script, service)
    assert check in found, f"the check did not run; those that did: {sorted(found)}"
    if found[check] is not None:
        pytest.fail(f"{check} on the {service}:\n{found[check]}")


def test_lock_file_names_no_index_and_has_hashes() -> None:
    lines = LOCK.read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith(("-i", "--index", "--extra"))]
    pins = [line for line in lines if "==" in line and not line.startswith(" ")]
    assert [line for line in pins if not line.endswith("\\")] == []
    assert sum("--hash=sha256:" in line for line in lines) >= len(pins) > 0


def test_environment_that_must_not_be_made_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TANDEM_OFFLINE", "1")
    monkeypatch.setattr("tests.conformance.environment.ROOT", tmp_path)
    with pytest.raises(pytest.skip.Exception, match="TANDEM_OFFLINE=1"):
        client_python()
    assert list(tmp_path.iterdir()) == []


def test_environment_that_cannot_be_made_fails_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("nothing-of-this-name==1.0 --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.delenv("TANDEM_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("tests.conformance.environment.ROOT", tmp_path)
    monkeypatch.setattr("tests.conformance.environment.LOCK", lock)
    with pytest.raises(
        pytest.fail.Exception, match=r"cannot make the environment(.|\n)*nothing-of-this-name"
    ):
        client_python()
    with contextlib.suppress(StopIteration):
        pytest.fail(f"{next(tmp_path.rglob('ready'))} says that it is there")
