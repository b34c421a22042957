"""A settings file: values set in it, all else kept byte for byte, and written at once or not at all."""

import os
import stat
import tomllib
from pathlib import Path

import pytest

from inference_core.errors import InvalidInput
from toolchain.settings_file import MARK, merged, names, read, write

VALUES = {"threads": 2, "max_batch": 4}

KEPT = [
    ("", f"{MARK}now\nthreads = 2\nmax_batch = 4\n"),
    ("# mine\nmode = 'edge'\n", f"{MARK}now\nthreads = 2\nmax_batch = 4\n# mine\nmode = 'edge'\n"),
    ("cloud = ''", f"{MARK}now\nthreads = 2\nmax_batch = 4\ncloud = ''"),
    (
        "\n  threads =  8   # by hand\nmax_batch=0x10",
        f"{MARK}now\n\n  threads =  2   # by hand\nmax_batch=4",
    ),
    (
        "max_batch = 4\r\nmode = 'edge'\r\n",
        f"{MARK}now\r\nthreads = 2\r\nmax_batch = 4\r\nmode = 'edge'\r\n",
    ),
    (
        f"# first\n{MARK}once, long ago\nthreads = 1\n\nmax_batch = 1\n",
        f"# first\n{MARK}now\nthreads = 2\n\nmax_batch = 4\n",
    ),
    (
        "\"threads\" = 1\n'max_batch' = 'some'\n[models.a]\nthreads = 7\n",
        f"{MARK}now\n\"threads\" = 2\n'max_batch' = 4\n[models.a]\nthreads = 7\n",
    ),
    ("[models.a]\nthreads = 7\n", f"{MARK}now\nthreads = 2\nmax_batch = 4\n[models.a]\nthreads = 7\n"),
    (
        f'a = """\nthreads = 1\n{MARK}then\n"""\nthreads = 1\nmax_batch = 4',
        f'{MARK}now\na = """\nthreads = 1\n{MARK}then\n"""\nthreads = 2\nmax_batch = 4',
    ),
    ("threads = true\nmax_batch = 4.0\n", f"{MARK}now\nthreads = 2\nmax_batch = 4\n"),
]


@pytest.mark.parametrize(("text", "after"), KEPT)
def test_settings_change_in_their_place_and_all_else_stays(text: str, after: str) -> None:
    assert merged(text, VALUES, "now") == after
    assert tomllib.loads(after) == {**tomllib.loads(text), **VALUES}
    assert merged(after, VALUES, "now") == after


@pytest.mark.parametrize(
    "text", ["threads = 'very many'\n", "threads = [\n1,\n2]\n", "threads.a = 1\n", "[threads]\na = 1\n"]
)
def test_what_cannot_be_changed_without_touching_more_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"threads: cannot be changed .*write threads = 2 there yourself"):
        merged(text, VALUES, "now")


def test_names_are_those_at_the_top() -> None:
    assert names("bundles = []\n[models]\ncloud = 1\n") == {"bundles", "models"}


def test_a_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "edge.toml") == ""


def test_a_file_is_read_with_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_bytes(b"a = 1\r\nb = '\xc3\xa4'\n")
    assert read(tmp_path / "edge.toml") == "a = 1\r\nb = 'ä'\n"


@pytest.mark.parametrize("content", [b"threads = \n", b"a = '\xff'", b"\xef\xbb\xbfa = 1\n", b"a = 1\na = 2"])
def test_a_file_that_no_service_could_read_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"edge\.toml: is left alone, since it is not TOML: "):
        read(path)
    assert path.read_bytes() == content


def test_a_written_file_keeps_its_rights_and_its_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "edge.toml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write(link, "a = 'ä'\r\n")
    assert link.is_symlink()
    assert real.read_bytes() == b"a = '\xc3\xa4'\r\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [link, real]


def test_a_new_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write(tmp_path / "edge.toml", "a = 1\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "edge.toml").stat().st_mode) == 0o644


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").mkdir()
    with pytest.raises(OSError, match=r"edge\.toml"):
        write(tmp_path / "edge.toml", "a = 1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["edge.toml"]
    assert not any((tmp_path / "edge.toml").iterdir())
