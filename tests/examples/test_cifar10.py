"""The shipped CIFAR-10 bundle: it loads, is small, and does on the test photos what its report says."""

import os
from pathlib import Path

import pytest

from examples.cifar10.data import CLASSES
from inference_core.bundle import Bundle, load_bundle
from toolchain.bundle_commands import bundle_samples
from toolchain.evaluate import Figures, evaluate_bundle
from toolchain.runs import CPU

MODELS = Path(__file__).parents[2] / "models"
PHOTOS = os.environ.get("TANDEM_CIFAR10", "")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(MODELS / "cifar10")


@pytest.fixture(scope="module")
def figures(bundle: Bundle) -> Figures:
    if not PHOTOS:
        pytest.skip("TANDEM_CIFAR10 names no folder with test.zip")
    return evaluate_bundle(bundle, bundle_samples(bundle.manifest, Path(PHOTOS) / "test.zip"))


def test_every_file_reproduces_its_golden_outputs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    halves = [half for cut in manifest.cuts for half in (cut.head, cut.tail)]
    for file in (manifest.full, *manifest.variants, *halves):
        bundle.engine(file, threads=1, providers=CPU)
    assert (manifest.model, manifest.labels, len(manifest.cuts)) == ("cifar10", CLASSES, 2)


def test_sizes(bundle: Bundle) -> None:
    assert bundle.manifest.edge_variant.precision == "int8"
    assert bundle.manifest.edge_variant.bytes <= 400_000
    assert sum(file.stat().st_size for file in MODELS.rglob("*.onnx")) < 12_000_000


def test_accuracy_on_the_test_photos(figures: Figures) -> None:
    assert figures.full.accuracy >= 0.905
    assert figures.edge_figures.accuracy >= 0.85
    int8, fp32 = (figures.variants[name].accuracy for name in ("int8", "fp16"))
    assert int8 >= fp32 - 0.005


def test_the_cascade_is_nearly_as_good_as_the_full_model(figures: Figures) -> None:
    assert figures.cascade_accuracy >= figures.full.accuracy - 0.005
    assert figures.escalated <= 0.30


def test_every_cut_agrees_with_the_full_model(figures: Figures) -> None:
    assert all(cut.agreement >= 0.995 for cut in figures.cuts.values())


def test_the_manifest_says_what_is_measured(bundle: Bundle, figures: Figures) -> None:
    assert bundle.manifest.full.accuracy == pytest.approx(figures.full.accuracy, abs=0.002)
    assert bundle.manifest.edge_variant.accuracy == pytest.approx(figures.edge_figures.accuracy, abs=0.002)
