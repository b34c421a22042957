"""The shipped digits bundle: it loads, and it does what its README says."""

from pathlib import Path

import pytest

from examples.digits.data import read_preprocess, read_samples
from inference_core.bundle import Bundle, load_bundle
from inference_core.confidence import score, softmax
from toolchain.evaluate import Figures, evaluate_bundle
from toolchain.runs import CPU
from toolchain.scans import LABELS, Part

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ROOT / "models" / "digits")


@pytest.fixture(scope="module")
def figures(bundle: Bundle) -> Figures:
    return evaluate_bundle(bundle, read_samples(Part.TEST))


def test_every_file_reproduces_its_golden_outputs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    halves = [half for cut in manifest.cuts for half in (cut.head, cut.tail)]
    for file in (manifest.full, *manifest.variants, *halves):
        bundle.engine(file, threads=1, providers=CPU)
    assert (manifest.model, manifest.version, manifest.labels) == ("digits", "2", LABELS)
    assert manifest.preprocess == read_preprocess()


def test_the_cascade_is_nearly_as_good_as_the_full_model(figures: Figures) -> None:
    assert figures.full.accuracy > figures.edge_figures.accuracy + 0.02
    assert figures.cascade_accuracy >= figures.full.accuracy - 0.005
    assert figures.escalated <= 0.30


def test_every_cut_agrees_with_the_full_model(figures: Figures) -> None:
    assert len(figures.cuts) == 2
    assert all(cut.agreement >= 0.995 for cut in figures.cuts.values())


def test_the_manifest_says_what_is_measured(bundle: Bundle, figures: Figures) -> None:
    # One scan more or less may tip over where another CPU rounds differently.
    assert bundle.manifest.full.accuracy == pytest.approx(figures.full.accuracy, abs=0.003)
    assert bundle.manifest.edge_variant.accuracy == pytest.approx(figures.edge_figures.accuracy, abs=0.003)


def test_the_edge_is_sure_of_one_sample_and_escalates_the_other(bundle: Bundle) -> None:
    calibration, rules = bundle.manifest.calibration, bundle.manifest.preprocess
    assert rules is not None
    edge = bundle.engine(bundle.manifest.edge_variant, threads=1, providers=CPU)
    full = bundle.engine(bundle.manifest.full, threads=1, providers=CPU)
    for name, digit, sure in (("sample.png", "3", True), ("hard.png", "1", False)):
        inputs = {"input": rules.tensor((EXAMPLE / name).read_bytes())}
        logits = edge.run(inputs)["logits"]
        confidence = score(softmax(logits, calibration.temperature), calibration.scorer)[0]
        assert bool(confidence >= calibration.threshold) == sure
        assert (LABELS[int(logits.argmax())] == digit) == sure
        assert LABELS[int(full.run(inputs)["logits"].argmax())] == digit
