"""The commands on the page about the protocol, run as they stand there, against both services."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.environment import ROOT, client_python
from tests.joint.services import Services

# The first test of all may have to make the environment.
pytestmark = pytest.mark.timeout(600)

PAGE = (ROOT / "docs" / "open-inference.md").read_text()
BUNDLE = ROOT / "models" / "digits"


def blocks(language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The services' REST addresses, by those on the page."""
    with Services(tmp_path_factory.mktemp("page")) as services:
        cloud = services.cloud(BUNDLE)
        edge = services.edge(BUNDLE, cloud.ports[1], deadline_ms=20_000)
        yield {
            "localhost:8000": f"127.0.0.1:{edge.wait_ready().ports[0]}",
            "localhost:9000": f"127.0.0.1:{cloud.wait_ready().ports[0]}",
        }


def redirected(text: str, ports: dict[str, str]) -> str:
    for shown, real in ports.items():
        text = text.replace(shown, real)
    return text


def test_commands(ports: dict[str, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    commands = [line for block in blocks("sh") for line in re.split(r"\n(?=curl)", block.strip())]
    assert len(commands) == 8
    for command in commands:
        script = redirected(command.replace("curl", "curl --silent --show-error --fail-with-body", 1), ports)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert json.loads(done.stdout), command


def test_program(ports: dict[str, str], tmp_path: Path) -> None:
    (program,) = blocks("python")
    path = tmp_path / "program.py"
    path.write_text(redirected(program, ports))
    done = subprocess.run(
        [str(client_python()), "-W", "ignore", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\[\[.*\]\] (edge|cloud)$", done.stdout.strip(), re.DOTALL), done.stdout
