"""`tandem prepare`, `inspect` and `verify` on the command line: what is printed, refused, and left behind."""

import os
import pty
import resource
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.toolchain import families, networks
from toolchain.__main__ import main

ROOT = Path(__file__).parents[2]
EASY = (
    "--gap",
    "0.2",
    "--max-loss",
    "0.1",
    "--max-change",
    "0.1",
)  # what random weights and few samples can keep
WRONG_INPUT, FAILED = 2, 1
WITHIN_S = 60.0  # for a stage to be reached and a process to end, on a busy machine

Answer = tuple[int, str, str]
Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, and data for them."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "full.onnx").write_bytes(networks.full_network())
    (folder / "edge.onnx").write_bytes(networks.edge_network())
    for image in networks.images(60):
        _write(folder / "images" / image.name, image.data)
        _write(folder / "flat" / Path(image.name).name, image.data)
    x = networks.inputs(400)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "few.npz", x=x[:40])
    return folder


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, and what is written too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`tandem` with these arguments: its exit status, standard output and standard error."""

    def run(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# ---- what is made


def test_a_flat_folder_becomes_a_bundle_that_is_shown_and_verified(run: Run, place: Path, left: Path) -> None:
    out = left / "made" / "shapes"
    options = ["--mean", "0.5", "--std", "0.25", "--version", "1.2", "--seed", "3"]
    status, shown, err = run(
        "prepare", place / "full.onnx", "--data", place / "flat", "--out", out, *options, *EASY
    )
    assert (status, err) == (0, "")
    assert shown.startswith("shapes version 1.2\n")
    assert "the answers of the full model" in shown
    lines = shown.splitlines()
    assert lines[-2] == f"report    {out}/report.html"
    assert f"CLOUD_BUNDLES={out} tandem-cloud" in lines[-1]
    assert f"EDGE_BUNDLES={out} tandem-edge" in lines[-1]
    assert list(left.iterdir()) == [left / "made"]
    assert list((left / "made").iterdir()) == [out]

    assert run("inspect", out)[:2] == (0, "\n".join(lines[:-3]) + "\n")
    status, checks, _ = run("verify", out, "--data", place / "unlabelled.npz")
    assert status == 0, checks
    assert "400 samples" in checks

    # INT8 arithmetic has no numbers for these.
    np.savez(left / "drifted.npz", x=10 * networks.inputs(400))
    status, checks, _ = run("verify", out, "--data", left / "drifted.npz")
    assert status == FAILED
    assert "contradicted" in checks


def test_a_corrupt_image_is_named_and_skipped_up_to_the_limit(
    run: Run, place: Path, left: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = left / "data.zip"
    with zipfile.ZipFile(data, "w") as archive:
        for path in sorted((place / "flat").iterdir()):
            archive.writestr(path.name, path.read_bytes())
        archive.writestr("bad.png", b"no image")
    common = ["prepare", place / "full.onnx", "--data", data, "--out", left / "shapes", *EASY]
    status, _, err = run(*common)
    assert status == WRONG_INPUT
    assert "1 of 61 images cannot be used, --max-bad allows 0: bad.png" in err
    assert [path.name for path in left.iterdir()] == ["data.zip"]

    assert run(*common, "--max-bad", "1")[0] == 0
    assert "skipped bad.png" in caplog.text
    assert "bad.png" in (left / "shapes" / "report.json").read_text()


# ---- what is refused, quickly and before any model is looked at


AT_ONCE: list[tuple[list[str], str]] = [
    (["--out", "{left}/My Model"], "cannot be called 'My Model'"),
    (["--out", "{left}/My Model"], "--name"),
    (["--out", "{left}/x", "--name", "a/b"], "model 'a/b' does not match"),
    (["--out", "{left}/x", "--name", ""], "model '' does not match"),
    (["--out", "{left}/x", "--version", "1 2"], "version '1 2' does not match"),
    (["--out", "{left}/x", "--version", "1\n"], "version '1\\n' does not match"),
    (["--out", "{left}/x", "--gap", "0"], "the gap must lie between 0 and 1, got 0"),
    (["--out", "{left}/x", "--gap", "1.5"], "the gap must lie between 0 and 1, got 1.5"),
    (["--out", "{left}/x", "--gap", "nan"], "the gap must lie between 0 and 1, got nan"),
    (["--out", "{left}/x", "--confidence", "1"], "the confidence must lie between 0 and 1, got 1"),
    (["--out", "{left}/x", "--escalation-budget", "-1"], "the escalation budget must lie between 0 and 1"),
    (["--out", "{left}/x", "--cut", "a"], "--cut a: not NAME=TENSOR[+TENSOR]"),
    (["--out", "{left}/x", "--cut", "a="], "--cut a=: not NAME=TENSOR[+TENSOR]"),
    (["--out", "{left}/x", "--cut", "a=b+"], "--cut a=b+: not NAME=TENSOR[+TENSOR]"),
    (["--out", "{left}/x", "--cut", "a=b+b"], "--cut a=b+b: not NAME=TENSOR[+TENSOR]"),
    (["--out", "{left}/x", "--cut", "a=b", "--cut", "a=c"], "--cut a=c: there is a cut 'a' already"),
    (["--out", "{left}/x", "--cut", "A=b"], "cut 'A' does not match"),
    (["--out", "{left}/x", "--cut", "a" * 60 + "=b"], "is longer than 54 characters"),
    (["--out", "{left}/x", "--mean", "a,b"], "--mean takes numbers"),
    (["--out", "{left}/x", "--resize", "8"], "--resize takes WIDTHxHEIGHT"),
    (["--out", "{left}/x", "--input-shape", "3x"], "--input-shape 3x: not sizes"),
    (["--out", "{place}/images"], "images: exists already; say --replace"),
    (["--out", "{place}/images", "--replace"], "images: is no bundle, so it is not replaced"),
    (["--out", "{place}/full.onnx/x"], "full.onnx is no folder that this user may write in"),
    (["--out", "{left}/x", "--data", "{left}/nowhere"], "nowhere: no such file or folder"),
    (["--out", "{left}/x", "--test", "{left}/nowhere"], "nowhere: no such file or folder"),
    (["--out", "{left}/x", "--edge", "{left}/nowhere.onnx"], "nowhere.onnx: no such file or folder"),
    (["--out", "{left}/x", "--labels", "{left}/nowhere"], "--labels {left}/nowhere: cannot be read"),
    (["--out", "{left}/x", "--labels", "{place}/full.onnx"], "full.onnx: "),
]


@pytest.mark.parametrize(("options", "said"), AT_ONCE)
def test_what_can_be_seen_at_once_is_refused_at_once(
    run: Run, place: Path, left: Path, options: list[str], said: str
) -> None:
    # There is no model here: whoever looks at it says something else.
    words = [option.format(place=place, left=left) for option in options]
    (left / "broken.onnx").write_bytes(b"never read")
    status, out, err = run("prepare", left / "broken.onnx", "--data", place / "few.npz", *words)
    assert (status, out) in ((WRONG_INPUT, ""), (FAILED, ""))
    assert said.format(place=place, left=left) in err
    assert err.startswith("tandem: ")
    assert err.count("\n") == 1
    assert [path.name for path in left.iterdir()] == ["broken.onnx"]


@pytest.mark.parametrize("seed", ["-1", "x"])
def test_a_seed_is_a_whole_number_from_0(run: Run, place: Path, left: Path, seed: str) -> None:
    status, _, err = run("prepare", place / "full.onnx", "--data", place, "--out", left / "x", "--seed", seed)
    assert status == 2
    assert "--seed" in err
    assert not any(left.iterdir())


# ---- what is refused of models


def _with_nan() -> bytes:
    model = onnx.load_from_string(networks.full_network())
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights.flat[3] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w1"))
    data: bytes = model.SerializeToString()
    return data


def _two_batch_axes() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["logits"], axes=[2], keepdims=0)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "other", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "other"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: b"this is no model", "model.onnx: not an ONNX file"),
        (lambda: b"", "model.onnx: not an ONNX file"),
        (_with_nan, "weight 'w1' holds a NaN or an infinity"),
        (_two_batch_axes, "are open; export it with fixed ones"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    run: Run, place: Path, left: Path, model: Callable[[], bytes], said: str
) -> None:
    (left / "model.onnx").write_bytes(model())
    status, out, err = run("prepare", left / "model.onnx", "--data", place / "few.npz", "--out", left / "x")
    assert (status, out) == (FAILED, "")
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in left.iterdir()] == ["model.onnx"]


def test_an_edge_model_with_another_input_is_refused(run: Run, place: Path, left: Path) -> None:
    mlp = next(family for family in families.FAMILIES if family.name == "mlp")
    (left / "mlp.onnx").write_bytes(mlp.build())
    options = ["--data", place / "few.npz", "--out", left / "x", "--edge", left / "mlp.onnx"]
    status, _, err = run("prepare", place / "full.onnx", *options)
    assert status == FAILED
    assert err == "tandem: the edge model takes FP32 [20], the full model FP32 [1, 8, 8]\n"
    assert [path.name for path in left.iterdir()] == ["mlp.onnx"]


# ---- what is refused of data


def _empty(folder: Path) -> None:
    folder.mkdir()


def _one_class(folder: Path) -> None:
    for image in networks.images(12):
        _write(folder / "only" / Path(image.name).name, image.data)


def _too_many_classes(folder: Path) -> None:
    for at, image in enumerate(networks.images(12)):
        _write(folder / f"class{at % 4}" / Path(image.name).name, image.data)


def _large(folder: Path) -> None:
    for at in range(12):
        _write(folder / f"{at}.png", networks.png(np.zeros((16, 16), np.uint8)))


def _no_zip(folder: Path) -> None:
    folder.write_bytes(b"PK\3\4 and then nothing")


def _other_shape(folder: Path) -> None:
    with folder.open("wb") as file:
        np.savez(file, x=np.zeros((20, 3, 8, 8), np.float32))
    folder.rename(folder.with_suffix(".npz"))


DATA: list[tuple[Callable[[Path], None], list[str], str]] = [
    (_empty, [], "data: holds no image"),
    (_one_class, [], "all images lie in the folder 'only': one class"),
    (_too_many_classes, [], "4 folders of images, the model has 3 outputs"),
    (_too_many_classes, ["--labels", "{left}/labels.txt"], "label 'class0' is not one of a, b, c"),
    (_large, [], "16x16, the model takes 8x8; give --resize"),
    (_large, ["--labels", "{left}/two.txt"], "--labels names 2 classes, the model has 3 outputs"),
    (_no_zip, [], "not a zip archive or a damaged one"),
]


@pytest.mark.parametrize(("make", "options", "said"), DATA)
def test_data_that_cannot_be_used_is_refused_in_one_line(
    run: Run, place: Path, left: Path, make: Callable[[Path], None], options: list[str], said: str
) -> None:
    (left / "labels.txt").write_text("a\nb\n\nc\n")
    (left / "two.txt").write_text("a\nb\n")
    make(left / "data")
    before = sorted(left.rglob("*"))
    words = [option.format(left=left) for option in options]
    status, out, err = run(
        "prepare", place / "full.onnx", "--data", left / "data", "--out", left / "x", *words
    )
    assert (status, out) == (WRONG_INPUT, "")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(left.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--gap", "0.02"], WRONG_INPUT, "the data has 20, which can certify 0.14 at best"),
        (["--escalation-budget", "0.02"], WRONG_INPUT, "a budget of 0.02 cannot be certified"),
        (["--gap", "0.2", "--cut", "a=nowhere"], FAILED, "the model cannot be cut at nowhere, only at: "),
        (["--gap", "0.2", "--edge", "{place}/edge.onnx", "--exit", "always"], WRONG_INPUT, "choose one of"),
        (["--gap", "0.2", "--test", "{place}/images"], WRONG_INPUT, "label"),
    ],
)
def test_what_cannot_come_out_is_said_before_the_work(
    run: Run, place: Path, left: Path, options: list[str], status: int, said: str
) -> None:
    words = [option.format(place=place) for option in options]
    answer = run("prepare", place / "full.onnx", "--data", place / "few.npz", "--out", left / "x", *words)
    assert answer[:2] == (status, "")
    assert said in answer[2]
    assert answer[2].count("\n") == 1
    assert not any(left.iterdir())


# ---- real processes: signals, terminals, full disks


class Terminal:
    """`tandem prepare` with its standard error on a terminal of its own; `temporary` is its TMPDIR."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self._reading, writing = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolchain", "prepare", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary), "TERM": "xterm", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
        )
        os.close(writing)
        self.said = ""

    def read_until(self, words: str) -> None:
        """Wait until standard error says `words`; fail when it ends before."""
        while words not in self.said:
            said = self._read()
            assert said, f"ended before it said {words!r}:\n{self.said}"
            self.said += said

    def finish(self) -> int:
        """Read on to the end; the exit status."""
        while said := self._read():
            self.said += said
        os.close(self._reading)
        return self.process.wait(WITHIN_S)

    def _read(self) -> str:
        try:
            return os.read(self._reading, 4096).decode(errors="replace")
        except OSError:  # how a terminal says that nobody writes to it any more
            return ""


@pytest.mark.parametrize(
    ("number", "stage", "status"),
    [
        (signal.SIGINT, "parted:", 130),
        (signal.SIGTERM, "quantized: int8", 143),
        (signal.SIGTERM, "certified:", 143),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing_behind(
    place: Path, tmp_path: Path, number: signal.Signals, stage: str, status: int
) -> None:
    out = tmp_path / "above" / "shapes"
    terminal = Terminal(
        tmp_path, place / "full.onnx", "--data", place / "unlabelled.npz", "--out", out, "--gap", "0.2"
    )
    terminal.read_until(stage)
    terminal.process.send_signal(number)
    assert terminal.finish() == status
    assert "Traceback" not in terminal.said
    assert not any(terminal.temporary.iterdir())
    assert list(tmp_path.iterdir()) == [terminal.temporary]


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    """No file may be larger than the models: only the last one to be written, the report, would be."""
    temporary, out = tmp_path / "temporary", tmp_path / "above" / "shapes"
    temporary.mkdir()
    limit = 20_000
    command = [sys.executable, "-m", "toolchain", "prepare", str(place / "full.onnx"), *EASY]
    ended = subprocess.run(
        [*command, "--data", str(place / "few.npz"), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert ended.returncode == WRONG_INPUT
    assert ended.stdout == ""
    assert ended.stderr == f"tandem: {out}: cannot be written (File too large)\n"
    assert list(tmp_path.iterdir()) == [temporary]
    assert not any(temporary.iterdir())
