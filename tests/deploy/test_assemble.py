import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.assemble import ROOT, Role, assemble, copy_bundles, main
from edge_node.model_slot import load_models
from edge_node.settings import Settings
from inference_core.bundle import load_bundle
from inference_core.errors import BundleError
from tests.bundles import CUTS, EXIT, GOLDEN, write_bundle

READ_BY: dict[Role, Callable[[Path], set[str]]] = {
    "edge": lambda folder: {
        load_bundle(folder).manifest.edge_variant.file,
        *(cut.head.file for cut in load_bundle(folder).manifest.cuts),
    },
    "cloud": lambda folder: {
        load_bundle(folder).manifest.full.file,
        *(cut.tail.file for cut in load_bundle(folder).manifest.cuts),
    },
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This checkout's code, with one small bundle as its models."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (
        "protos",
        "inference_core",
        "edge_node",
        "cloud_service",
        "deploy",
        "LICENSE",
        "pyproject.toml",
    ):
        (folder / name).symlink_to(ROOT / name)
    write_bundle(folder / "models" / "colors")
    return folder


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_of_a_bundle_only_what_the_service_reads_goes_along(
    role: Role, checkout: Path, tmp_path: Path
) -> None:
    source = checkout / "models" / "colors"

    sizes = assemble(role, checkout, tmp_path / "image")

    copied = {path.name: path for path in (tmp_path / "image" / "models" / "colors").iterdir()}
    golden = load_bundle(source).manifest.golden.file
    assert copied.keys() == READ_BY[role](source) | {"manifest.json", golden}
    assert sizes == {"colors": sum(path.stat().st_size for path in copied.values())}
    assert load_bundle(tmp_path / "image" / "models" / "colors").digest == load_bundle(source).digest


def test_an_early_exit_goes_along_without_the_head_that_it_stands_for(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models" / "colors", exit_at="means")
    for role in READ_BY:
        copy_bundles(role, tmp_path / "models", tmp_path / role)
    edge = {path.name for path in (tmp_path / "edge" / "colors").iterdir()}
    assert edge == {"manifest.json", GOLDEN, EXIT, "head-pixels.onnx"}
    cloud = {path.name for path in (tmp_path / "cloud" / "colors").glob("*.onnx")}
    assert cloud == {"full.onnx", "tail-pixels.onnx", "tail-means.onnx"}
    given: dict[str, Any] = {"bundles": (tmp_path / "edge" / "colors",)}
    (model,) = load_models(Settings(**given))
    assert model.cuts == CUTS


@pytest.mark.parametrize(("role", "package"), [("edge", "edge_node"), ("cloud", "cloud_service")])
def test_the_service_starts_from_the_folder_alone(
    role: Role, package: str, checkout: Path, tmp_path: Path
) -> None:
    assemble(role, checkout, tmp_path / "image")

    # -P and a bare PYTHONPATH: nothing of the checkout or of an installed Tandem is found first
    code = f"import {package}.__main__ as m, sys; sys.argv[1:] = ['--version']; print(m.__file__); m.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "image")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(tmp_path / "image"))
    assert {path.name for path in (tmp_path / "image").iterdir() if path.is_dir()} >= {"protos", package}
    assert not (tmp_path / "image" / "toolchain").exists()


def test_an_image_with_a_broken_bundle_is_not_built(checkout: Path, tmp_path: Path) -> None:
    manifest = load_bundle(checkout / "models" / "colors").manifest
    (checkout / "models" / "colors" / manifest.full.file).write_bytes(b"\0" * manifest.full.bytes)

    with pytest.raises(BundleError, match="SHA-256"):
        assemble("cloud", checkout, tmp_path / "image")


def test_metadata_names_the_version_of_the_project(checkout: Path, tmp_path: Path) -> None:
    assemble("edge", checkout, tmp_path / "image")

    (folder,) = (tmp_path / "image").glob("*.dist-info")
    version = folder.name.removesuffix(".dist-info").partition("-")[2]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"Version: {version}" in (folder / "METADATA").read_text().splitlines()


@pytest.mark.parametrize("arguments", [[], ["edge"], ["device", "x"], ["edge", "x", "y"]])
def test_wrong_arguments_are_told_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: " in capsys.readouterr().err


def test_every_shipped_bundle_can_be_assembled(tmp_path: Path) -> None:
    for role in ("edge", "cloud"):
        sizes = assemble(role, ROOT, tmp_path / role)
        assert sizes.keys() == {path.parent.name for path in (ROOT / "models").glob("*/manifest.json")}
        for name in sizes:
            digests = json.loads((tmp_path / role / "models" / name / "manifest.json").read_text())
            assert digests["format"] == 1
