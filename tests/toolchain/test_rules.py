"""Rules of preprocessing from files and from options."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from inference_core.errors import InvalidInput, TooLarge
from inference_core.manifest import TensorInfo
from inference_core.preprocess import Color, Fit, Layout, Preprocess, Resample
from toolchain.rules import (
    MAX_RULES_BYTES,
    parse_numbers,
    parse_size,
    preprocess_from_options,
    read_preprocess,
)

RULES = Preprocess(height=32, width=24, mean=(0.1, 0.2, 0.3), std=(0.5,), fit=Fit.CROP)
YAML = """
# as it was trained
height: 32
width: 24
mean: [0.1, 0.2, 0.3]
std: [0.5]
fit: crop
"""


def takes(*shape: int, datatype: str = "FP32") -> TensorInfo:
    return TensorInfo(name="input", datatype=datatype, shape=shape)


def derived(*shape: int, datatype: str = "FP32", **options: Any) -> Preprocess | None:
    return preprocess_from_options(takes(*shape, datatype=datatype), **options)[0]


# ---- files


def test_rules_are_read_from_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(YAML)
    assert read_preprocess(tmp_path / "rules.yaml") == RULES
    (tmp_path / "rules.json").write_text(json.dumps(RULES.model_dump(mode="json"), indent="\t"))
    assert read_preprocess(tmp_path / "rules.json") == RULES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("height: 32", "width: Field required"),
        (f"{YAML}\ncolour: rgb", r"colour: unknown field; there are color, height, width, .*, std$"),
        (f"{YAML}\ncolor: blue", "color: Input should be 'rgb' or 'gray'"),
        (f"{YAML}\nscale: 1/255", "scale: Input should be a valid number"),
        (f"{YAML}\nscale: .nan", "scale: Input should be a finite number"),
        (f"{YAML}\ncolor: gray", "mean must hold 1 number, the images are gray"),
        ("height: 0\nwidth: 1", "height: Input should be greater than 0"),
        ("mean: [a, b]\nheight: 1\nwidth: 1", r"mean\.0: Input should be a valid number"),
        ("", "must hold fields and values as `height: 224`, not nothing"),
        ("[1, 2]", "must hold fields and values as `height: 224`, not a list"),
        ("height: [", r"cannot be read \(while parsing"),
        ("height: !!python/object:os.system 1", r"cannot be read \(could not determine a constructor"),
        ("height: 2024-99-99", r"cannot be read \(month must be in 1..12"),
        ("[" * 3_000, r"cannot be read \(maximum recursion depth exceeded"),
    ],
)
def test_wrong_rules_name_the_file_and_the_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=f"^{re.escape(str(path))}: {says}") as caught:
        read_preprocess(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_rules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.yaml: no such file$"):
        read_preprocess(tmp_path / "none.yaml")
    with pytest.raises(InvalidInput, match=r"no such file$"):
        read_preprocess(tmp_path)
    path = tmp_path / "rules.json"
    path.write_text("{")
    with pytest.raises(InvalidInput, match=r"rules\.json: cannot be read \(Expecting property name"):
        read_preprocess(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"rules\.json: cannot be read \('utf-8' codec can't decode"):
        read_preprocess(path)
    path.write_bytes(b" " * (MAX_RULES_BYTES + 1))
    with pytest.raises(TooLarge, match=r"rules\.json: 65537 bytes, the limit is 65536$"):
        read_preprocess(path)


# ---- options


@pytest.mark.parametrize(
    ("shape", "color", "layout", "size"),
    [
        ((3, 32, 24), Color.RGB, Layout.CHW, (24, 32)),
        ((1, 32, 24), Color.GRAY, Layout.CHW, (24, 32)),
        ((32, 24, 3), Color.RGB, Layout.HWC, (24, 32)),
        ((32, 24, 1), Color.GRAY, Layout.HWC, (24, 32)),
    ],
)
def test_the_shape_gives_what_is_not_said(
    shape: tuple[int, ...], color: Color, layout: Layout, size: tuple[int, int]
) -> None:
    rules, resized = preprocess_from_options(takes(*shape))
    assert rules is not None
    assert (rules.color, rules.layout, (rules.width, rules.height)) == (color, layout, size)
    assert rules.shape == shape
    assert (rules.scale, rules.mean, rules.std) == (1 / 255, (0.0,), (1.0,))
    assert not resized


def test_what_is_said_is_taken() -> None:
    rules, resized = preprocess_from_options(
        takes(3, 32, 24),
        resize=(24, 32),
        fit=Fit.CROP,
        color=Color.RGB,
        mean=(0.1, 0.2, 0.3),
        std=(0.5,),
        scale=1.0,
        layout=Layout.CHW,
        resample=Resample.BICUBIC,
    )
    assert resized
    assert rules == RULES.model_copy(update={"scale": 1.0, "resample": Resample.BICUBIC})


@pytest.mark.parametrize("shape", [(3, 32, 3), (1, 28, 1), (3, 64, 1)])
def test_a_shape_that_can_be_read_both_ways_needs_the_layout(shape: tuple[int, ...]) -> None:
    assert derived(*shape) is None
    for layout in Layout:
        rules = derived(*shape, layout=layout)
        assert rules is not None
        assert (rules.layout, rules.shape) == (layout, shape)
    with pytest.raises(
        InvalidInput, match=r"^--mean: the model takes FP32 .*, which can be chw or hwc; add --layout$"
    ):
        derived(*shape, mean=(0.5,))


@pytest.mark.parametrize(
    ("shape", "datatype"),
    [
        ((128,), "INT64"),
        ((9, 128), "FP32"),
        ((2, 32, 32), "FP32"),
        ((3, 32, 32), "UINT8"),
        ((3, 4, 32, 32), "FP32"),
        ((1, 1, 16_000), "FP32"),
        ((), "FP32"),
    ],
)
def test_other_inputs_are_tensors_and_take_no_options(shape: tuple[int, ...], datatype: str) -> None:
    assert preprocess_from_options(takes(*shape, datatype=datatype)) == (None, False)
    says = f"--resize, --mean: the model takes {datatype} {list(shape)}, which is no image"
    with pytest.raises(InvalidInput, match=f"^{re.escape(says)}"):
        derived(*shape, datatype=datatype, mean=(0.0,), resize=(32, 32))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resize": (32, 24)}, "--resize 32x24: the model takes 24x32 (width x height)"),
        ({"color": Color.GRAY}, "--color gray: the model takes 3 channels, which is rgb"),
        ({"layout": Layout.HWC}, "--layout hwc: the model takes FP32 [3, 32, 24], which is chw"),
        ({"fit": Fit.CROP}, "--fit says how to resize, but not that; add --resize 24x32"),
        ({"resample": Resample.NEAREST}, "--resample says how to resize, but not that; add --resize 24x32"),
        ({"mean": (0.1, 0.2)}, "--mean must hold 1 or 3 numbers, the images are rgb"),
        ({"std": (0.1, 0.2, 0.0)}, "--std must hold positive numbers"),
        ({"scale": 0.0}, "--scale: Input should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(says)}$"):
        derived(3, 32, 24, **options)


# ---- numbers and sizes


def test_numbers_are_parsed() -> None:
    assert parse_numbers("0.485,0.456, 0.406", "--mean") == (0.485, 0.456, 0.406)
    assert parse_numbers("1e-3", "--std") == (0.001,)


@pytest.mark.parametrize("text", ["", "a", "0.1,,0.2", "0.1;0.2", "1/255"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"^--mean takes numbers with commas between, got {re.escape(repr(text))}$"
    ):
        parse_numbers(text, "--mean")


@pytest.mark.parametrize("text", ["nan", "0.1,inf"])
def test_what_is_not_finite_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=f"^--std takes finite numbers, got '{text}'$"):
        parse_numbers(text, "--std")


def test_a_size_is_parsed() -> None:
    assert parse_size("224x160", "--resize") == (224, 160)
    assert parse_size("32X32", "--resize") == (32, 32)


@pytest.mark.parametrize("text", ["", "224", "224x", "x", "0x5", "-1x5", "2x3x4", "2.5x3", "²x3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"^--resize takes WIDTHxHEIGHT as 224x224, got {re.escape(repr(text))}$"
    ):
        parse_size(text, "--resize")
