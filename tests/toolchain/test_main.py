"""The `tandem` command: its help, what it prints, and how it fails."""

import re
import socket
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import SURE, SURE_BUT_WRONG, UNSURE, UNSURE_AND_RIGHT, edited, picture, pixels
from tests.toolchain.edge import write_images
from toolchain.__main__ import main

DIGITS = Path(__file__).parents[2] / "models" / "digits"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`tandem` with these arguments: its exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", ["prepare", "inspect", "verify", "demo", "device", "evaluate", "scans"])
def test_every_command_is_listed_and_has_help(run: Run, command: str) -> None:
    assert command in run("--help")[1]
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"tandem {command}" in out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("demo", ["models/digits", "500", "seconds", "LABEL/IMAGE"]),
        ("device", ["127.0.0.1:8000", "images per second", "10.0", "milliseconds", "Ctrl-C"]),
    ],
)
def test_help_tells_units_and_defaults(run: Run, command: str, told: list[str]) -> None:
    out = re.sub(r"[\s│]+", " ", run(command, "--help")[1])
    assert [words for words in told if words not in out] == []


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, version("tandem-inference") + "\n")


def test_scans_are_written_and_evaluated(run: Run, tmp_path: Path) -> None:
    assert run("scans", "--out", tmp_path / "scans")[:2] == (0, f"445 scans in {tmp_path}/scans\n")
    assert len(list((tmp_path / "scans").rglob("*.png"))) == 445
    status, out, _ = run("evaluate", DIGITS, "--data", tmp_path / "scans", "--limit", 20)
    assert status == 0
    assert "Measured on 20 samples" in out
    assert run("evaluate", DIGITS, "--limit", 20)[0] == 0  # the same scans, without files


def test_evaluate_takes_tensors_with_labels_and_without(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    folder, x = make_bundle(), pixels(SURE, UNSURE, UNSURE_AND_RIGHT, SURE_BUT_WRONG)
    np.savez(tmp_path / "labelled.npz", x=x, y=np.array([0, 2, 2, 2]))
    np.savez(tmp_path / "unlabelled.npz", x=x)
    status, out, err = run("evaluate", folder, "--data", tmp_path / "labelled.npz")
    assert (status, err) == (0, "")
    assert "Measured on 4 samples " in out
    assert "75.00%" in out
    status, out, _ = run("evaluate", folder, "--data", tmp_path / "unlabelled.npz")
    assert status == 0
    assert "Measured on 4 samples, against the full model" in out
    assert "agreement" in out
    status, out, _ = run("evaluate", folder, "--data", tmp_path / "unlabelled.npz", "--limit", 2)
    assert "Measured on 2 samples" in out


def test_evaluate_takes_a_flat_folder_of_images(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    for name, color in (("a", SURE), ("b", UNSURE)):
        (tmp_path / f"{name}.png").write_bytes(picture(color))
    status, out, _ = run("evaluate", make_bundle(), "--data", tmp_path)
    assert status == 0
    assert "Measured on 2 samples, against the full model" in out


def test_a_device_plays_a_folder_once(run: Run, edge: str, tmp_path: Path) -> None:
    images = write_images(tmp_path, each=3)
    status, out, _ = run("device", images, "--url", edge, "--rate", 200, "--mode", "edge")
    assert status == 0
    assert "9 sent, 9 answered, 0 refused, 0 not answered" in out
    assert "edge (mode) 9" in out
    assert "accuracy   66.67%" in out


def test_a_device_plays_a_zip_as_often_as_told(run: Run, edge: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("one.png", picture(SURE))
    status, out, _ = run("device", tmp_path / "images.zip", "--url", edge, "--rate", 200, "--count", 7)
    assert status == 0
    assert "7 sent, 7 answered" in out
    assert "accuracy   -" in out  # it lies in no folder, so nobody knows what is on it


def test_a_refused_image_fails_the_device(run: Run, edge: str, tmp_path: Path) -> None:
    status, out, _ = run("device", write_images(tmp_path, each=1), "--url", edge, "--mode", "sideways")
    assert status == 1
    assert "0 answered, 3 refused" in out
    assert "3 x 400: mode: " in out


def test_an_edge_that_is_not_there_fails_the_device(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    status, out, err = run("device", write_images(tmp_path, each=1), "--url", url)
    assert (status, out) == (1, "")
    assert err.startswith(f"tandem: no edge node at {url}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--bundle", "nowhere"], "nowhere/manifest.json: cannot be read"),
        (["demo", "--bundle", DIGITS, "--data", "nowhere"], "nowhere: no such folder or zip archive"),
        (["demo", "--bundle", DIGITS, "--data", "{images}"], "label 'blue' is not one of 0, 1, 2"),
        (["demo", "--bundle", "{colors}"], "--data: needed for colors"),
        (["evaluate", "{colors}", "--data", __file__], "not a folder, and not a zip archive"),
        (["device", "nowhere"], "nowhere: no such folder or zip archive"),
        (["device", "{images}", "--loop", "--count", "3"], "--loop: goes on until Ctrl-C"),
        (["device", "{images}", "--rate", "0"], "rate: must be above 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path, arguments: list[object], said: str
) -> None:
    places = {"colors": make_bundle(), "images": write_images(tmp_path / "images", each=1)}
    status, out, err = run(*(str(argument).format(**places) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("tandem: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_service_that_does_not_start_fails_the_demo_with_its_own_words(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_bundle()
    with edited(folder) as manifest:
        manifest["full"]["sha256"] = "0" * 64
    data = write_images(tmp_path / "images", each=1)
    status, _, err = run("demo", "--bundle", folder, "--data", data)
    assert status == 1
    assert "tandem: cloud_service ended with status 1; the last of its log:" in err
    assert "full.onnx" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["demo", "--limit", "0"], ["device"], ["dance"]])
def test_wrong_arguments(run: Run, arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2
