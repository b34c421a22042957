"""Texts of the command line as values, each refused in one line that names the option."""

from collections.abc import Sequence
from pathlib import Path

from inference_core import trust
from inference_core.errors import InvalidInput
from toolchain.recipe import check_labels


def read_labels(path: Path) -> tuple[str, ...]:
    """The names in the text file `path`, one a line; `InvalidInput` for names that no bundle can have."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--labels {path}: cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    try:
        check_labels(names)
    except InvalidInput as error:
        raise InvalidInput(f"--labels {path}: {error}") from error
    return names


def model_name(name: str | None, out: Path) -> str:
    """The `name` given, or that of the folder if it can be one."""
    if name is None and not trust.NAME.fullmatch(out.resolve().name):
        raise InvalidInput(
            f"{out}: a model cannot be called {out.resolve().name!r}, which does not match "
            f"{trust.NAME.pattern}; give it a name with --name"
        )
    return name if name is not None else out.resolve().name


def parse_cuts(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Tensors by cut of texts such as `NAME=TENSOR+TENSOR`. Raises `InvalidInput` for anything else."""
    cuts: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        tensors = tuple(rest.split("+"))
        if not name or not all(tensors) or len(set(tensors)) < len(tensors):
            raise InvalidInput(f"--cut {text}: not NAME=TENSOR[+TENSOR]")
        if name in cuts:
            raise InvalidInput(f"--cut {text}: there is a cut {name!r} already")
        cuts[name] = tensors
    return cuts


def parse_shape(text: str) -> tuple[int, ...]:
    """The sizes in a text such as `3x224x224`. Raises `InvalidInput` for anything else."""
    sizes = text.lower().split("x")
    if not all(size.isascii() and size.isdecimal() and int(size) > 0 for size in sizes):
        raise InvalidInput(f"--input-shape {text}: not sizes such as 3x224x224")
    return tuple(int(size) for size in sizes)
