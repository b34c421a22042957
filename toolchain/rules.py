"""Preprocessing from the command line: a file of rules, or options and what the model's input implies."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from inference_core.errors import InvalidInput, TooLarge
from inference_core.manifest import TensorInfo
from inference_core.preprocess import Color, Fit, Layout, Preprocess, Resample

MAX_RULES_BYTES = 64 << 10
_MAX_SIDE = 8192  # as `Preprocess` has it
_COLORS = {3: Color.RGB, 1: Color.GRAY}


def read_preprocess(path: Path) -> Preprocess:
    """The rules in the file `path`: JSON if it is called `.json`, YAML otherwise.

    Raises `InvalidInput` with the file, the field and what is wrong with it, and `TooLarge` for a file over
    `MAX_RULES_BYTES`.
    """
    try:
        if not path.is_file():
            raise InvalidInput(f"{path}: no such file")
        size = path.stat().st_size
        if size > MAX_RULES_BYTES:
            raise TooLarge(f"{path}: {size} bytes, the limit is {MAX_RULES_BYTES}")
        text = path.read_text(encoding="utf-8")
        rules = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(rules, dict):
        raise InvalidInput(f"{path}: must hold fields and values as `height: 224`, not {_kind(rules)}")
    return _preprocess(rules, f"{path}: ")


def preprocess_from_options(
    takes: TensorInfo,
    *,
    resize: tuple[int, int] | None = None,
    fit: Fit | None = None,
    color: Color | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    scale: float | None = None,
    layout: Layout | None = None,
    resample: Resample | None = None,
) -> tuple[Preprocess | None, bool]:
    """The rules that the options give, and whether images are to be resized; None means "not said".

    What is not said follows from `takes`, the model's input: FP32 `[3, h, w]` or `[1, h, w]` is `chw`,
    `[h, w, 3]` or `[h, w, 1]` is `hwc`, 3 channels are RGB and 1 is gray. For any other input, and for one
    that can be read both ways, there are no rules: that model takes tensors. `resize` is width and height.

    Raises `InvalidInput` for an option that does not fit the input, with both.
    """
    options: dict[str, Any] = {"resize": resize, "fit": fit, "color": color, "mean": mean, "std": std}
    options |= {"scale": scale, "layout": layout, "resample": resample}
    said = {name: value for name, value in options.items() if value is not None}
    layout = _layout(takes, layout, said)
    if layout is None:
        return None, False
    channels, height, width = takes.shape if layout is Layout.CHW else (takes.shape[2], *takes.shape[:2])
    if resize not in (None, (width, height)):
        raise InvalidInput(
            f"--resize {resize[0]}x{resize[1]}: the model takes {width}x{height} (width x height)"
        )
    if color not in (None, _COLORS[channels]):
        raise InvalidInput(
            f"--color {color}: the model takes {channels} channels, which is {_COLORS[channels]}"
        )
    for name in ("fit", "resample"):
        if name in said and resize is None:
            raise InvalidInput(f"--{name} says how to resize, but not that; add --resize {width}x{height}")
    fields = said | {"color": _COLORS[channels], "height": height, "width": width, "layout": layout}
    return _preprocess({k: v for k, v in fields.items() if k != "resize"}, "--"), resize is not None


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """`text` as "0.485,0.456,0.406"; `InvalidInput` names `option`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"{option} takes numbers with commas between, got {text!r}") from error
    if not all(math.isfinite(number) for number in numbers):
        raise InvalidInput(f"{option} takes finite numbers, got {text!r}")
    return numbers


def parse_size(text: str, option: str) -> tuple[int, int]:
    """`text` as "WIDTHxHEIGHT" in pixels; `InvalidInput` names `option`."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides):
        raise InvalidInput(f"{option} takes WIDTHxHEIGHT as 224x224, got {text!r}")
    return int(sides[0]), int(sides[1])


def _layout(takes: TensorInfo, layout: Layout | None, said: Mapping[str, Any]) -> Layout | None:
    """The layout of an image input; None for a model that takes tensors."""
    shape = takes.shape
    possible = []
    if takes.datatype == "FP32" and len(shape) == 3 and max(shape) <= _MAX_SIDE:
        possible += [Layout.CHW] if shape[0] in _COLORS else []
        possible += [Layout.HWC] if shape[2] in _COLORS else []
    named = ", ".join(f"--{name}" for name in said)
    model = f"the model takes {takes.datatype} {list(shape)}"
    if not possible and said:
        raise InvalidInput(
            f"{named}: {model}, which is no image: that is FP32 [3 or 1, h, w] or [h, w, 3 or 1]"
        )
    if layout is not None and layout not in possible:
        raise InvalidInput(f"--layout {layout}: {model}, which is {possible[0]}")
    if layout is None and len(possible) == 2 and said:
        raise InvalidInput(f"{named}: {model}, which can be chw or hwc; add --layout")
    return layout or (possible[0] if len(possible) == 1 else None)


def _preprocess(fields: Mapping[str, Any], where: str) -> Preprocess:
    try:
        return Preprocess.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Preprocess.model_fields)
            raise InvalidInput(f"{where}{field}: unknown field; there are {known}") from error
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{where}{field}: {reason}" if field else f"{where}{reason}") from error


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
