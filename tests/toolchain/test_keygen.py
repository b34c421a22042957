"""`tandem keygen`: one folder for a trial; run again it adds, and puts nothing in another's place unasked."""

import hashlib
import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inference_core.errors import InvalidInput
from toolchain.__main__ import main
from toolchain.keygen import Wanted, make, settings

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["keygen", *arguments])
    return int(str(caught.value.code or 0))


def test_one_command_makes_all_and_says_what_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert (
        run("--out", str(folder), "--cloud", "cloud.example", "--edge", "edge-1", "--device", "camera") == 0
    )
    out = capsys.readouterr().out
    for name in ("ca.pem", "ca.key", "cloud.pem", "cloud.key", "edge-1.pem", "edge-1.key", "devices.toml"):
        assert f"wrote {folder / name}" in out.splitlines()
    for line in settings(folder):
        assert line in out.splitlines()
    (key,) = re.findall(r"key of camera, shown only now: (\S+)", out)
    (entry,) = tomllib.loads((folder / "devices.toml").read_text())["keys"]
    assert entry == {"name": "camera", "sha256": hashlib.sha256(key.encode()).hexdigest()}
    assert key not in (folder / "devices.toml").read_text()
    assert len(key) > 40


def test_run_again_it_adds_and_keeps_the_authority(tmp_path: Path) -> None:
    make(tmp_path, Wanted(["cloud"], ["edge-1"], ["a"], DAY), AT, renew=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    devices = tmp_path / "devices.toml"
    devices.write_text(devices.read_text().replace('name = "a"', 'name = "a"  # the old one\nrate = 5'))
    made = make(tmp_path, Wanted([], ["edge-2"], ["b"], DAY), AT, renew=False)
    assert sorted(path.name for path in made.files) == ["devices.toml", "edge-2.key", "edge-2.pem"]
    assert made.keys.keys() == {"b"}
    for name, content in before.items():
        if name != "devices.toml":
            assert (tmp_path / name).read_bytes() == content
    assert [entry["name"] for entry in tomllib.loads(devices.read_text())["keys"]] == ["a", "b"]
    assert "# the old one" in devices.read_text()


def test_nothing_is_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, Wanted(["cloud"], ["edge-1"], ["a"], DAY), AT, renew=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, words in (
        (
            ("--edge", "edge-2", "--edge", "edge-1"),
            r"edge-1\.pem is there; --renew puts a new one in its place",
        ),
        (("--cloud", "other"), r"cloud\.pem is there"),
        (
            ("--device", "a", "--renew"),
            "--device: a has a key in .*; for a new one, take its entry out first",
        ),
    ):
        assert run("--out", str(tmp_path), *arguments) == 2
        assert re.search(words, capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run("--out", str(tmp_path), "--edge", "edge-1", "--renew") == 0
    assert (tmp_path / "edge-1.pem").read_bytes() != before["edge-1.pem"]
    assert (tmp_path / "ca.pem").read_bytes() == before["ca.pem"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted([], [], [], DAY), "nothing to make"),
        (Wanted([], ["a/b"], [], DAY), "--edge: node id 'a/b'"),
        (Wanted([], ["ca"], [], DAY), "--edge: 'ca' is the name of another file here"),
        (Wanted([], [], ["a b"], DAY), "--device: 'a b': must be"),
        (Wanted([], [], ["unknown"], DAY), "--device: 'unknown': that is what strangers are counted as"),
        (Wanted(["-x"], [], [], DAY), "--cloud: '-x' is no host name or address"),
        (Wanted(["ä"], [], [], DAY), "--cloud: 'ä' is no host name or address"),
    ],
)
def test_a_wrong_name_is_named_and_nothing_is_written(tmp_path: Path, wanted: Wanted, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        make(tmp_path / "keys", wanted, AT, renew=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_keys_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text("keys = 3")
    with pytest.raises(InvalidInput, match=r"devices\.toml: is not what this command has written"):
        make(tmp_path, Wanted([], [], ["a"], DAY), AT, renew=False)
