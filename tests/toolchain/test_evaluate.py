"""Measuring a bundle: the figures are what its files really do."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from inference_core.bundle import load_bundle
from inference_core.confidence import Scorer
from inference_core.errors import BundleError, InvalidInput
from inference_core.manifest import Calibration
from tests import bundles
from toolchain.evaluate import cascade, evaluate_bundle, render
from toolchain.samples import Samples

RED, BLUE = 0, 2
ALL_KINDS = (bundles.SURE, bundles.UNSURE, bundles.UNSURE_AND_RIGHT, bundles.SURE_BUT_WRONG)


def _samples(labelled: bool = True) -> Samples:
    """Two of each kind of colour, labelled with what the full model says, or not at all."""
    classes = np.array([RED, BLUE, BLUE, BLUE] * 2, np.int64)
    return Samples(bundles.pixels(*ALL_KINDS * 2), classes if labelled else None, 321.5)


def test_the_figures_of_a_bundle_whose_answers_are_known(make_bundle: Callable[..., Path]) -> None:
    figures = evaluate_bundle(load_bundle(make_bundle()), _samples())
    assert (figures.samples, figures.reference) == (8, "labels")
    assert figures.full.accuracy == 1.0
    assert figures.edge_figures.accuracy == 0.5  # sure, and unsure and right
    assert figures.escalated == 0.5  # the two unsure kinds
    assert figures.cascade_accuracy == 0.75  # all but sure but wrong
    assert {name: cut.agreement for name, cut in figures.cuts.items()} == {"pixels": 1.0, "means": 1.0}
    assert {name: cut.bytes for name, cut in figures.cuts.items()} == {"pixels": 192, "means": 3}
    assert figures.input_bytes == 321.5
    assert figures.speedup == figures.full.ms / figures.edge_figures.ms


def test_labels_may_say_that_the_full_model_is_wrong(make_bundle: Callable[..., Path]) -> None:
    samples = Samples(bundles.pixels(*ALL_KINDS), np.array([RED] * 4, np.int64), None)
    figures = evaluate_bundle(load_bundle(make_bundle()), samples)
    assert figures.full.accuracy == 0.25


def test_without_labels_the_full_model_is_right(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    figures = evaluate_bundle(bundle, _samples(labelled=False))
    labelled = evaluate_bundle(bundle, _samples())
    assert (figures.reference, figures.full.accuracy) == ("full", 1.0)
    assert figures.cascade_accuracy == labelled.cascade_accuracy
    assert figures.edge_figures.accuracy == labelled.edge_figures.accuracy


def test_tensors_are_sent_as_they_are(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    samples = Samples(bundles.pixels(*ALL_KINDS), None, None)
    assert evaluate_bundle(bundle, samples).input_bytes == bundle.manifest.input.bytes == 768


def test_sizes_are_those_of_the_files(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    figures = evaluate_bundle(bundle, _samples())
    assert figures.full.bytes == (bundle.folder / bundle.manifest.full.file).stat().st_size
    edge = bundle.folder / bundle.manifest.edge_variant.file
    assert figures.edge_figures.bytes == edge.stat().st_size
    assert min(figures.full.ms, *(cut.head_ms for cut in figures.cuts.values())) > 0


def test_a_changed_file_is_not_measured(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    path = bundle.folder / bundle.manifest.full.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="SHA-256"):
        evaluate_bundle(bundle, _samples())


def test_nothing_cannot_be_measured_on(make_bundle: Callable[..., Path]) -> None:
    none = Samples(bundles.pixels(*ALL_KINDS)[:0], None, None)
    with pytest.raises(InvalidInput, match="nothing to measure on"):
        evaluate_bundle(load_bundle(make_bundle()), none)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_table_shows_every_model_and_cut(make_bundle: Callable[..., Path], labelled: bool) -> None:
    figures = evaluate_bundle(load_bundle(make_bundle()), _samples(labelled))
    out = io.StringIO()
    Console(file=out, width=120).print(render(figures))
    text = out.getvalue()
    for part in ("full model", "served", "50.0% escalated", "75.00%", "cut pixels", "cut means", "8 samples"):
        assert part in text
    assert ("against the full model" in text) is not labelled
    assert ("accuracy" in text) is labelled


def test_the_json_form_holds_plain_values_only(make_bundle: Callable[..., Path]) -> None:
    figures = evaluate_bundle(load_bundle(make_bundle()), _samples()).as_json()
    assert figures["cuts"]["means"]["bytes"] == 3
    assert isinstance(figures["speedup"], float)


def test_the_threshold_itself_is_trusted() -> None:
    edge = np.zeros((2, 2), np.float32)  # confidence 0.5
    full = np.array([[0, 1], [0, 1]], np.float32)
    for threshold, expected in ((0.5, [0, 0]), (0.5001, [1, 1])):
        rule = Calibration(scorer=Scorer.MAX_PROBABILITY, temperature=1.0, threshold=threshold, samples=1)
        answers, escalated = cascade(edge, full, rule)
        assert answers.tolist() == expected
        assert escalated.tolist() == [bool(at) for at in expected]
