"""The committed stubs are what the `.proto` files give, and every allowed runtime can load them."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Which files each `.proto` is made into; `make protos` runs the same commands.
STUBS = {
    "open_inference": ("--python_out", "--pyi_out", "--grpc_python_out"),
    "fleet": ("--python_out", "--pyi_out", "--grpc_python_out"),
    "model_file": ("--python_out", "--pyi_out"),
}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all stubs made anew."""
    out = tmp_path_factory.mktemp("stubs")
    for name, outputs in STUBS.items():
        flags = [f"{output}={out}" for output in outputs]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *flags, f"protos/{name}.proto"]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    return out / "protos"


def test_every_proto_is_made() -> None:
    assert {path.stem for path in (ROOT / "protos").glob("*.proto")} == set(STUBS)


def test_committed_stubs_are_those_that_are_made(made: Path) -> None:
    fresh = {path.name: path.read_text() for path in made.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "protos").glob("*_pb2*.py*")}
    assert sorted(kept) == sorted(fresh)
    for name, text in fresh.items():
        assert kept[name] == text, f"protos/{name} is stale: run `make protos`"


def requirement(name: str) -> str:
    """The requirement of package `name` in `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = (line for line in project["dependencies"] if re.match(rf"{name}\b(?!-)", line))
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("stub", [f"{name}_pb2.py" for name in STUBS])
def test_the_oldest_allowed_protobuf_can_load_the_stubs(stub: str) -> None:
    text = (ROOT / "protos" / stub).read_text()
    line = re.search(r"^# Protobuf Python Version: (.+)$", text, re.MULTILINE)
    assert line is not None
    oldest = re.search(r">=([\d.]+)", requirement("protobuf"))
    assert oldest is not None
    assert numbers(line[1]) <= numbers(oldest[1])
    assert numbers(oldest[1]) <= numbers(version("protobuf"))


def test_the_oldest_allowed_grpcio_can_load_the_stubs() -> None:
    text = (ROOT / "protos" / "open_inference_pb2_grpc.py").read_text()
    made_with = re.search(r"^GRPC_GENERATED_VERSION = '(.+)'$", text, re.MULTILINE)
    assert made_with is not None
    oldest = re.search(r">=([\d.]+)", requirement("grpcio"))
    assert oldest is not None
    # "1.81" stands for 1.81.0 and all after it: the patch level does not matter here.
    assert numbers(made_with[1])[:2] <= numbers(oldest[1])[:2]


def test_numbers_compare_as_versions() -> None:
    assert numbers("6.9.0") < numbers("6.33.5") < numbers("7.0.0-rc1")
