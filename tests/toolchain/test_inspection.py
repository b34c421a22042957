"""What `tandem inspect` shows: the manifest, in words, on one screen, and nothing that moves the cursor."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inference_core.bundle import load_bundle
from inference_core.manifest import Certificate
from tests.bundles import edited
from toolchain.certify import ESCALATION, GAP, METHOD
from toolchain.inspection import certificate_words, describe, milliseconds, percent, printable, size

COLUMNS, LINES = 80, 40
SHIPPED = Path(__file__).resolve().parents[2] / "models"
CERTIFICATE = {
    "bounds": GAP,
    "bound": 0.02,
    "confidence": 0.95,
    "samples": 2500,
    "method": METHOD,
    "digests": ["0" * 64, "1" * 64],
    "observed": 0.0124,
    "escalated": 0.163,
}


def _lines(folder: Path) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=COLUMNS, color_system=None).print(describe(load_bundle(folder)))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _text(folder: Path) -> str:
    """Everything shown, each gap as one blank."""
    return " ".join(" ".join(_lines(folder)).split())


@pytest.mark.parametrize("model", ["digits", "cifar10"])
def test_a_bundle_that_ships_fits_on_one_screen(model: str) -> None:
    lines = _lines(SHIPPED / model)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


def test_the_figures_of_cifar10() -> None:
    folder = SHIPPED / "cifar10"
    text = _text(folder)
    for part in (
        "cifar10 version 2",
        load_bundle(folder).digest,
        "input FP32 [3, 32, 32], 12.3 kB",
        "rgb 32x32 stretch bilinear (x/255-[.491 .482 .447])/[.247 .243 .262]",
        "10: airplane, automobile, bird, cat, deer, dog, frog, ...",
        "edge int8, served int8 edge.int8.onnx 376.7 kB 87.7 %",
        "full fp16 full.onnx 3.9 MB 90.9 %",
        "block2 features UINT8 [64, 8, 8] 4.1 kB 99.7 %",
        "margin at temperature",
        "on 1,875 samples",
        "With 95 % confidence, on at most 1 % of inputs",
        "golden.npz, 72.5 kB",
    ):
        assert part in text, part


def test_only_the_manifest_is_read(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    for path in folder.iterdir():
        if path.name != "manifest.json":
            path.unlink()
    assert "colors version 1" in _text(folder)


def test_a_certificate_an_exit_and_the_ece_are_shown(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        content["calibration"] |= {"certificate": CERTIFICATE, "ece": 0.0123}
        content["variants"][0]["cut"] = "means"
        content["cuts"][0] |= {"head_ms": 0.5, "tail_ms": 12.0}
        content["reference"] = "full"
    text = _text(folder)
    assert "fitted on 100 samples; ECE 1.2 % on the test part" in text
    assert "With 95 % confidence, on at most 2 % of inputs the edge answers otherwise than" in text
    assert "means features UINT8 [3] 3 B 100 % fp32" in text
    assert "pixels features UINT8 [3, 8, 8] 192 B 100 % 0.50 12.0" in text
    assert "the answers of the full model" in text
    assert len(_lines(folder)) <= LINES


def test_a_bundle_without_images_and_cuts(make_bundle: Callable[..., Path]) -> None:
    text = _text(make_bundle(preprocess=False, cuts=()))
    assert "images none: takes tensors only" in text
    assert "tensors size" not in text


def test_text_from_the_manifest_is_never_markup_or_a_control_code(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        content["labels"] = ["[red]x[/red]", "\x1b[2J", "a\nb"]
        content["input"]["name"] = "\x9b31m"
        content["calibration"]["certificate"] = {**CERTIFICATE, "bounds": "[/] \x07"}
    text = _text(folder)
    assert "3: [red]x[/red], \\x1b[2J, a\\nb" in text
    assert "\\x9b31m FP32" in text
    assert "at most 2 %: [/] \\x07." in text
    assert all(character.isprintable() for character in text)


def test_many_labels_and_long_ones_stay_on_one_line(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    for labels, shown in (
        (["a" * 200, "b", "c"], f"3: {'a' * 48}, ..."),
        (["tench", "shark" * 20, "ray"], "3: tench, ..."),
        (["cat", "dog", "cow"], "3: cat, dog, cow "),
    ):
        with edited(folder) as content:
            content["labels"] = labels
        assert shown in _text(folder)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "rgb 8x8 stretch bilinear x/255 "),
        ({"scale": 1.0}, "rgb 8x8 stretch bilinear x/1 "),
        ({"scale": 0.0078, "mean": [1.0]}, "(x*0.0078-1)/1 "),
        ({"mean": [-0.5, 10.5, 0.0], "std": [0.25]}, "(x/255-[-.5 10.5 0])/.25 "),
        ({"fit": "crop", "resample": "nearest"}, "rgb 8x8 crop nearest x/255 "),
    ],
)
def test_preprocessing_as_a_formula(
    make_bundle: Callable[..., Path], changes: dict[str, Any], shown: str
) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        content["preprocess"] |= changes
    assert shown in _text(folder)


def test_certificates_in_words() -> None:
    certificate = Certificate.model_validate(CERTIFICATE)
    assert certificate_words(certificate) == (
        "With 95 % confidence, on at most 2 % of inputs the edge gives a wrong answer where the full model "
        "would give the right one, so the pair's accuracy is at most 2 points below the full model's. Shown "
        "by 2,500 certification samples, with 1.2 % such answers and 16.3 % escalated. It holds only for "
        "inputs like those of the certification part; drift voids it."
    )
    assert "on at most 2 % of inputs the edge answers otherwise than the full model would." in (
        certificate_words(certificate, "full")
    )
    budget = certificate.model_copy(update={"bounds": ESCALATION, "bound": 0.125, "observed": None})
    assert certificate_words(budget) == (
        "With 95 % confidence, at most 12.5 % of inputs are escalated. Shown by 2,500 certification "
        "samples, with 16.3 % escalated. It holds only for inputs like those of the certification part; "
        "drift voids it."
    )
    plain = budget.model_copy(update={"escalated": None})
    assert "Shown by 2,500 certification samples. It holds" in certificate_words(plain)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.984, "98.4 %"),
        (0, "0 %"),
        (1, "100 %"),
        (0.9996, "99.96 %"),
        (0.99999, "99.999 %"),
        (0.0004, "0.04 %"),
        (1e-9, "0.0000 %"),
        (-0.01, "-1.0 %"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (999_960, "1.0 MB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.0213, "0.021 ms"), (0.186, "0.19 ms"), (3.42, "3.4 ms"), (123.4, "123 ms"), (1234.5, "1,234 ms")],
)
def test_milliseconds(ms: float, text: str) -> None:
    assert milliseconds(ms) == text


def test_printable_text_is_left_as_it_is() -> None:
    assert printable("Größe 猫 \\n") == "Größe 猫 \\n"
    assert printable("a\x00\u202eb\udcff") == "a\\x00\\u202eb\\udcff"
