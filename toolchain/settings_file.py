"""A service's settings file: a few values set in it, and every other byte left as it is."""

import contextlib
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_core.errors import InvalidInput

MARK = "# tandem tune: "
_NOTE = re.compile(rf"^{MARK}[^\r\n]*", re.MULTILINE)


def read(path: Path) -> str:
    """The text of the settings file `path`, its line ends as they are; empty where there is no file.

    Raises `InvalidInput` for what no service could read either, and `OSError`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    try:
        text = data.decode()
        tomllib.loads(text)
    except ValueError as error:  # of both: not UTF-8, not TOML
        raise InvalidInput(f"{path}: is left alone, since it is not TOML: {error}") from error
    return text


def names(text: str) -> set[str]:
    """The settings and tables at the top of `text`, which is TOML."""
    return set(tomllib.loads(text))


def merged(text: str, values: Mapping[str, int], note: str) -> str:
    """`text`, which is TOML, with the settings in `values`, and `note` in a comment of one line.

    Settings that are there are changed in their place, as is an earlier note; others go to the top. All else
    stays byte for byte. Raises `InvalidInput` for a setting that cannot be changed without touching more.
    """
    end = "\r\n" if "\r\n" in text else "\n"
    for key, value in reversed([*values.items()]):  # each goes before those already at the top
        text = _with(text, key, value, end)
    return _with_note(text, f"{MARK}{note}", end)


def write(path: Path, text: str) -> None:
    """Put `text` into the file `path` at once or, when anything goes wrong, not at all. Raises `OSError`."""
    target = path.resolve()  # a link stays one
    beside = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with beside.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        raise


def _with(text: str, key: str, value: int, end: str) -> str:
    have = tomllib.loads(text)
    if type(have.get(key)) is int and have[key] == value:
        return text
    candidates = [f"{key} = {value}{end}{text}"]
    if key in have:
        # What looks like the setting may be part of a text or of a table: what it reads as tells.
        there = re.finditer(rf"^[ \t]*[\"']?{key}[\"']?[ \t]*=[ \t]*([^\s#]+)", text, re.MULTILINE)
        candidates = [f"{text[: one.start(1)]}{value}{text[one.end(1) :]}" for one in there]
    for candidate in candidates:
        if _parsed(candidate) == {**have, key: value}:
            return candidate
    raise InvalidInput(
        f"{key}: cannot be changed without touching more; write {key} = {value} there yourself"
    )


def _with_note(text: str, note: str, end: str) -> str:
    have = tomllib.loads(text)
    candidates = [f"{text[: old.start()]}{note}{text[old.end() :]}" for old in _NOTE.finditer(text)]
    return next((one for one in candidates if _parsed(one) == have), f"{note}{end}{text}")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
