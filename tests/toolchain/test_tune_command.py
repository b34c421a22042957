"""`tandem tune`: what it prints and writes, that both services take what it wrote, and how it fails."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from cloud_service.settings import load_settings as cloud_settings
from edge_node.settings import load_settings as edge_settings
from inference_core.bundle import load_bundle
from toolchain import machine
from toolchain.__main__ import main
from toolchain.processes import Service, ServiceFailed

WRONG_INPUT, FAILED = 2, 1
WITHIN_S = 60.0
FAST = ("--seconds", "0.01", "--max-batch", "2")

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("EDGE_", "CLOUD_")):
            monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`tandem` with these arguments: its exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def test_it_is_listed_and_has_help(run: Run) -> None:
    assert "tune" in run("--help")[1]
    status, out, _ = run("tune", "--help")
    out = re.sub(r"[\s│]+", " ", out)
    assert status == 0
    assert [
        words for words in ("tandem tune", "--max-batch", "1 to 256", "edge.toml") if words not in out
    ] == []


def test_both_files_are_written_said_and_taken_by_the_services(
    run: Run, make_bundle: Make, tmp_path: Path
) -> None:
    folder, out = make_bundle(), tmp_path / "new" / "tuned"
    status, said, err = run("tune", folder, "--out", out, *FAST)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["cloud.toml", "edge.toml"]
    assert said.count("chosen") == 2
    assert "edge: edge-int8.onnx" in said
    assert "cloud: full.onnx" in said

    edge = tomllib.loads((out / "edge.toml").read_text())
    cloud = tomllib.loads((out / "cloud.toml").read_text())
    assert edge.keys() == {"threads", "workers", "max_batch"}
    assert cloud.keys() == {"threads", "max_batch_size"}
    assert edge["workers"] == max(1, machine.cores() // edge["threads"])
    for name, values in (("edge", edge), ("cloud", cloud)):
        assert f"{out}/{name}.toml: {', '.join(f'{k} = {v}' for k, v in values.items())}\n" in said
        first = (out / f"{name}.toml").read_text().splitlines()[0]
        assert first.startswith("# tandem tune: 2")
        assert load_bundle(folder).digest in first
        assert f"{machine.cores()} core" in first
        assert machine.processor() in first
        assert f"{name.upper()}_BUNDLES={folder} tandem-{name} --config {out}/{name}.toml" in said

    loaded = edge_settings(out / "edge.toml")
    assert {name: getattr(loaded, name) for name in edge} == edge
    served = cloud_settings(out / "cloud.toml")
    assert {name: getattr(served, name) for name in cloud} == cloud


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(
    run: Run, make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One sample at a time, which is neither service's default, is the only thing to choose.
    assert run("tune", make_bundle(), "--out", tmp_path, "--max-batch", 1, "--seconds", "0.01")[0] == 0
    edge, cloud = tmp_path / "edge.toml", tmp_path / "cloud.toml"
    assert edge_settings(None).max_batch > edge_settings(edge).max_batch == 1
    assert cloud_settings(None).max_batch_size > cloud_settings(cloud).max_batch_size == 1
    monkeypatch.setenv("EDGE_MAX_BATCH", "3")
    monkeypatch.setenv("CLOUD_MAX_BATCH_SIZE", "5")
    assert edge_settings(edge).max_batch == 3
    assert cloud_settings(cloud).max_batch_size == 5


def test_started_services_use_what_was_written(run: Run, make_bundle: Make, tmp_path: Path) -> None:
    folder = make_bundle()
    assert run("tune", folder, "--out", tmp_path, "--max-batch", 1, "--seconds", "0.01")[0] == 0
    given = {"BUNDLES": str(folder)}

    async def scenario() -> None:
        told = given | {"CONFIG": str(tmp_path / "cloud.toml")}
        async with Service("cloud_service", "CLOUD", told) as cloud:
            config = httpx2.get(f"{cloud.url}/v2/models/colors/config", trust_env=False).json()
            assert config["max_batch_size"] == 1
        told = given | {"CONFIG": str(tmp_path / "edge.toml"), "CLOUD": ""}
        async with Service("edge_node", "EDGE", told) as edge:
            assert httpx2.get(f"{edge.url}/readyz", trust_env=False).status_code == 200
        # That it was this file which the edge went by shows when it is spoilt.
        path = tmp_path / "edge.toml"
        path.write_text(re.sub("workers = .*", "workers = 0", path.read_text()))
        with pytest.raises(ServiceFailed, match=r"(?s)status 2.*EDGE_WORKERS"):
            await Service("edge_node", "EDGE", told).start()

    asyncio.run(scenario())


def test_a_file_that_is_there_keeps_all_else(run: Run, make_bundle: Make, tmp_path: Path) -> None:
    folder, path = make_bundle(), tmp_path / "edge.toml"
    mine = (
        f"# my node\nbundles = ['{folder}']\nmax_batch = 77  # more\n\n[models.colors]\nmode = 'edge' # why\n"
    )
    path.write_text(mine)
    status, said, _ = run("tune", folder, "--out", tmp_path, *FAST)
    assert status == 0
    settings, text = edge_settings(path), path.read_text()
    assert settings.max_batch in (1, 2)
    assert settings.bundles == (folder,)
    assert text.endswith(mine.replace("77", str(settings.max_batch)))
    assert f"    tandem-edge --config {path}" in said  # its own bundles, not those of the environment
    assert run("tune", folder, "--out", tmp_path, *FAST)[0] == 0
    again = path.read_text()
    assert again.count("# tandem tune: ") == 1
    assert len(again.splitlines()) == len(text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere"], WRONG_INPUT, "nowhere/manifest.json: cannot be read: No such file or directory"),
        ([__file__], WRONG_INPUT, "manifest.json: cannot be read: Not a directory"),
        (["{bundle}", "--max-batch", "0"], WRONG_INPUT, "--max-batch: must be 1 to 256, got 0"),
        (["{bundle}", "--seconds", "0"], WRONG_INPUT, "--seconds: must be 0.01 to 60, got 0"),
        (["{bundle}", "--out", __file__], WRONG_INPUT, "is no folder"),
        (["{bundle}", "--out", "{place}/broken"], WRONG_INPUT, "broken/cloud.toml: "),
        (["{bundle}", "--out", "{place}/table"], WRONG_INPUT, "table/edge.toml: workers: cannot be changed"),
        (["{bundle}", "--out", "{place}/folder"], FAILED, "folder/edge.toml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_touched(
    run: Run, make_bundle: Make, tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    for name, text in (("broken/cloud.toml", "threads = \n"), ("table/edge.toml", "[workers]\n")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text)
    (tmp_path / "folder" / "edge.toml").mkdir(parents=True)
    bundle = make_bundle()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    words = [argument.format(bundle=bundle, place=tmp_path) for argument in arguments]
    ended, out, err = run("tune", *words)
    assert (ended, out) == (status, "")
    assert err.startswith("tandem: ")
    assert err.count(said) == 1
    assert err.count("\n") == 1
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_bundle_that_no_service_would_load_is_refused(run: Run, make_bundle: Make, tmp_path: Path) -> None:
    folder = make_bundle()
    (folder / "full.onnx").write_bytes(b"x")
    status, _, err = run("tune", folder, "--out", tmp_path / "out", *FAST)
    assert status == WRONG_INPUT
    assert err.startswith("tandem: ")
    assert "full.onnx: 1 bytes, the manifest says" in err
    assert not (tmp_path / "out").exists()


def test_progress_shows_on_a_terminal_and_ctrl_c_leaves_nothing(make_bundle: Make, tmp_path: Path) -> None:
    folder, out = make_bundle(), tmp_path / "out"
    out.mkdir()
    (out / "edge.toml").write_text("threads = 1\n")
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "toolchain", "tune", str(folder), "--out", str(out), "--seconds", "5"],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=writing,
    )
    os.close(writing)
    said = b""
    try:
        while b"tuning the edge" not in said:
            said += os.read(reading, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(WITHIN_S) == 130
    finally:
        process.kill()
        process.wait()
        os.close(reading)
    assert [path.name for path in out.iterdir()] == ["edge.toml"]
    assert (out / "edge.toml").read_text() == "threads = 1\n"
