"""From two networks and images to a bundle, all stages for real."""

from dataclasses import replace
from pathlib import Path

import pytest

from inference_core.bundle import load_bundle
from inference_core.errors import BundleError, InvalidInput, ModelError
from tests.toolchain import networks
from toolchain import prepare as stages
from toolchain.calibrate import Target
from toolchain.evaluate import CPU
from toolchain.images import LabelledImage
from toolchain.prepare import Recipe, prepare


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(
        model="shapes",
        version="7",
        preprocess=networks.PREPROCESS,
        labels=networks.LABELS,
        full=networks.full_network(),
        edge=networks.edge_network(),
        cuts={"early": "inner"},
        calibration=networks.images(200, seed=1),
        test=networks.images(100, seed=2),
        half=True,
        target=Target(gap=0.02, margin=0.0, cap=0.5),
    )


def test_a_bundle_comes_out_that_loads_and_was_measured(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MIN_AGREEMENT", 0.95)  # random weights put many samples near a border
    bundle, figures = prepare(recipe, tmp_path / "shapes")
    manifest = load_bundle(bundle.folder).manifest
    assert (manifest.model, manifest.version, manifest.edge) == ("shapes", "7", "int8")
    assert [(v.name, v.precision) for v in manifest.variants] == [("int8", "int8"), ("fp16", "fp16")]
    assert manifest.full.precision == "fp16"
    assert manifest.full.bytes < 0.6 * len(recipe.full)
    assert manifest.full.accuracy == figures.full.accuracy > 0.98
    assert figures.edge_figures.accuracy < figures.cascade_accuracy
    assert 0 < figures.escalated < 0.7
    assert manifest.calibration.samples == 200
    for cut in manifest.cuts:
        bundle.engine(cut.tail, threads=1, providers=CPU)
    with pytest.raises(BundleError, match="exists already"):
        prepare(recipe, tmp_path / "shapes")


def test_a_cut_that_changes_answers_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MIN_AGREEMENT", 1.01)
    with pytest.raises(ModelError, match=r"cut 'early' agrees with the full model on .* of the test images"):
        prepare(recipe, tmp_path / "shapes")
    assert not any(tmp_path.iterdir())


def test_images_with_unknown_labels_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    stray = LabelledImage("0.png", "oval", recipe.test[0].data)
    with pytest.raises(InvalidInput, match="label 'oval'"):
        prepare(replace(recipe, calibration=[stray]), tmp_path / "shapes")
