"""Bundles as the edge loads them, and those that it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edge_node.model_slot import EdgeRun, LoadedModel, ModelSlots, load_models
from edge_node.policy import Mode
from edge_node.preferences import ModelPreferences
from edge_node.settings import Settings
from inference_core.bundle import load_bundle
from inference_core.errors import BundleError, ModelNotFound, Overloaded
from inference_core.tensors import Tensors
from tests.bundles import (
    EXIT,
    SURE,
    UNSURE,
    change_exit,
    edited,
    golden_bytes,
    model_bytes,
    pixels,
    pool_and_classify,
    replace_file,
)

MakeBundle = Callable[..., Path]


def load(*folders: Path, **changes: Any) -> list[LoadedModel]:
    return load_models(Settings(**{"bundles": folders, **changes}))


def test_loaded_model(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (model,) = load(folder)
    assert (model.name, model.manifest.version, model.digest) == ("colors", "1", load_bundle(folder).digest)
    assert (model.input.name, model.input.datatype, model.input.shape) == ("input", "FP32", (-1, 3, 8, 8))
    assert list(model.heads) == ["pixels", "means"]
    assert model.edge.engine.name == "edge-int8.onnx"
    assert 0.005 < model.reserve_s < 1.0


def run_edge(model: LoadedModel, tensor: NDArray[Any]) -> EdgeRun:
    return model.read(model.edge.engine.run({model.manifest.input.name: tensor}))


def run_head(model: LoadedModel, cut: str, tensor: NDArray[Any]) -> Tensors:
    return model.heads[cut].engine.run({model.manifest.input.name: tensor})


def test_edge_answers_and_heads_give_features(make_bundle: MakeBundle) -> None:
    (model,) = load(make_bundle())
    seen = run_edge(model, pixels(SURE))
    assert seen.logits.shape == (1, 3)
    assert seen.features == {}
    assert len(seen.probabilities) == 3
    assert seen.confidence == pytest.approx(max(seen.probabilities)) == pytest.approx(1.0)
    assert run_head(model, "means", pixels(UNSURE))["features"].tolist() == [[130, 128, 128]]


@pytest.mark.parametrize(("cut", "other"), [("means", "pixels"), ("pixels", "means")])
def test_early_exit_gives_what_the_head_gives_and_takes_its_place(
    make_bundle: MakeBundle, cut: str, other: str
) -> None:
    (plain,) = load(make_bundle("plain"))
    (model,) = load(make_bundle("exit", exit_at=cut))
    assert model.edge.engine.name == EXIT
    assert model.cuts == plain.cuts == ("pixels", "means")
    assert list(model.heads) == [other]
    for color in (SURE, UNSURE):
        seen, apart = run_edge(model, pixels(color)), run_head(plain, cut, pixels(color))
        np.testing.assert_allclose(seen.logits, run_edge(plain, pixels(color)).logits, atol=1e-4)
        assert seen.features.keys() == apart.keys() == {"features"}
        np.testing.assert_array_equal(seen.features["features"], apart["features"])
        assert seen.features["features"].dtype == np.uint8


def test_of_an_early_exit_only_what_the_tail_takes_is_kept(make_bundle: MakeBundle) -> None:
    folder = make_bundle(exit_at="means")
    change_exit(folder, lambda graph: graph.output.append(onnx.helper.make_empty_tensor_value_info("exact")))
    (model,) = load(folder)
    assert len(model.edge.engine.outputs) == 3
    assert run_edge(model, pixels(SURE)).features.keys() == {"features"}


@pytest.mark.parametrize(
    ("scorer", "temperature", "confidence"),
    [
        ("max_probability", 20.0, np.e / (np.e + 2)),
        ("margin", 20.0, (np.e - 1) / (np.e + 2)),
        ("max_probability", 1e6, 1 / 3),
        ("margin", 1e6, 0.0),
        ("entropy", 1e6, 0.0),
        ("entropy", 0.01, 1.0),
    ],
)
def test_calibration_comes_from_the_bundle(
    make_bundle: MakeBundle, scorer: str, temperature: float, confidence: float
) -> None:
    (model,) = load(make_bundle(scorer=scorer, temperature=temperature))
    assert run_edge(model, pixels(SURE)).confidence == pytest.approx(confidence, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ModelPreferences(mode=Mode.CASCADE, deadline_ms=200, threshold=0.8)),
        ({"mode": "edge", "deadline_ms": 9}, ModelPreferences(mode=Mode.EDGE, deadline_ms=9, threshold=0.8)),
        (
            {"mode": "edge", "models": {"colors": {"mode": "split", "cut": "means", "threshold": 0.0}}},
            ModelPreferences(mode=Mode.SPLIT, cut="means", deadline_ms=200, threshold=0.0),
        ),
        (
            {"models": {"colors": {"deadline_ms": 7}}},
            ModelPreferences(mode=Mode.CASCADE, deadline_ms=7, threshold=0.8),
        ),
        (
            {"models": {"colors": {"cut": "means"}}},
            ModelPreferences(mode=Mode.CASCADE, cut="means", deadline_ms=200, threshold=0.8),
        ),
    ],
)
def test_defaults_of_a_model(
    make_bundle: MakeBundle, changes: dict[str, Any], expected: ModelPreferences
) -> None:
    (model,) = load(make_bundle(), **changes)
    assert model.defaults == expected


@pytest.mark.parametrize(
    ("own", "cut"),
    [({}, "means"), ({"mode": "split"}, "means"), ({"mode": "split", "cut": "pixels"}, "pixels")],
)
def test_split_is_at_the_early_exit_unless_the_settings_say(
    make_bundle: MakeBundle, own: dict[str, Any], cut: str
) -> None:
    (model,) = load(make_bundle(exit_at="means"), models={"colors": own})
    assert model.defaults.cut == cut


@pytest.mark.parametrize(
    ("changes", "cuts", "text"),
    [
        ({"mode": "split"}, (), "settings of model 'colors': mode: 'split' needs a cut"),
        (
            {"models": {"colors": {"mode": "split", "cut": "x"}}},
            ("means",),
            "settings of model 'colors': cut: 'x' is not one of means",
        ),
        (
            {"models": {"colors": {"cut": "x"}}},
            ("means",),
            "settings of model 'colors': cut: 'x' is not one of means",
        ),
        ({"models": {"colours": {"mode": "edge"}}}, (), "EDGE_MODELS: no bundle is of model 'colours'"),
    ],
)
def test_settings_that_the_bundle_cannot_serve(
    make_bundle: MakeBundle, changes: dict[str, Any], cuts: tuple[str, ...], text: str
) -> None:
    with pytest.raises(BundleError, match=text):
        load(make_bundle(cuts=cuts), **changes)


def test_two_bundles(make_bundle: MakeBundle) -> None:
    slots = ModelSlots()
    slots.load(load(make_bundle("b", model="b"), make_bundle("a", model="a", preprocess=False, cuts=())))
    assert slots.ready
    assert [model.name for model in slots.all()] == ["a", "b"]
    assert slots.get("a").manifest.preprocess is None


def test_two_bundles_of_one_model_are_refused_and_nothing_changes(make_bundle: MakeBundle) -> None:
    slots = ModelSlots()
    slots.load(load(make_bundle("a", cuts=())))
    with pytest.raises(BundleError, match="two bundles are of model 'colors'"):
        slots.load(load(make_bundle("b", cuts=()), make_bundle("c", version="2", cuts=())))
    assert slots.ready
    assert slots.get("colors").manifest.version == "1"


def test_empty_slots_are_loading() -> None:
    slots = ModelSlots()
    assert not slots.ready
    assert slots.all() == []
    with pytest.raises(Overloaded, match="still loading"):
        slots.get("colors")


def test_what_is_not_served_is_named(make_bundle: MakeBundle) -> None:
    slots = ModelSlots()
    slots.load(load(make_bundle(cuts=())))
    assert slots.get("colors", "1") is slots.get("colors")
    with pytest.raises(ModelNotFound, match="'shapes' is not served here, only colors"):
        slots.get("shapes")
    with pytest.raises(ModelNotFound, match="'2' of model 'colors' is not served here, only '1'"):
        slots.get("colors", "2")


def _wrong_digest(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["variants"][1]["sha256"] = "0" * 64


def _wrong_size(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["variants"][1]["bytes"] += 1


def _other_model(folder: Path) -> None:
    replace_file(folder, "edge-int8.onnx", model_bytes(pool_and_classify(gain=1.0)))


def _other_input(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["input"]["name"] = "image"


def _newer(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["format"] = 2


def _bad_name(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["model"] = "../colors"


def _unknown_field(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["calibration"]["treshold"] = 0.5


def _not_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _no_golden(folder: Path) -> None:
    (folder / "golden.npz").unlink()


def _golden_without_head(folder: Path) -> None:
    names = ("edge-int8.onnx", "full.onnx")
    files = {name: (folder / name).read_bytes() for name in names}
    replace_file(folder, "golden.npz", golden_bytes(files, cuts=()))


def _pickled_golden(folder: Path) -> None:
    replace_file(folder, "golden.npz", b"not a zip")


def _outside_data(folder: Path) -> None:
    model = onnx.load_from_string((folder / "edge-int8.onnx").read_bytes())
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    replace_file(folder, "edge-int8.onnx", model.SerializeToString())


def _linked(folder: Path) -> None:
    path = folder / "edge-int8.onnx"
    (folder.parent / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_wrong_digest, "edge-int8.onnx: SHA-256 is [0-9a-f]{64}, the manifest says 0{64}"),
        (_wrong_size, r"edge-int8.onnx: \d+ bytes, the manifest says"),
        (_other_model, "edge-int8.onnx: output 'logits' differs from its golden value"),
        (_other_input, r"edge-int8.onnx: inputs \['input'\], the manifest says \['image'\]"),
        (_newer, "manifest.json: format: 2 is newer than this program understands"),
        (_bad_name, "model '../colors' does not match"),
        (_unknown_field, "manifest.json: calibration.treshold: Extra inputs are not permitted"),
        (_not_json, "manifest.json: not JSON"),
        (_no_golden, "golden.npz: cannot be read: No such file"),
        (_golden_without_head, r"head-pixels.onnx: golden outputs \[\], has \['features'\]"),
        (_pickled_golden, "golden.npz: not an npz archive"),
        (_outside_data, "edge-int8.onnx: tensor '.*' keeps its data outside the file"),
        (_linked, "edge-int8.onnx: a symbolic link"),
    ],
)
def test_broken_bundle_is_refused_by_file_and_rule(
    make_bundle: MakeBundle, spoil: Callable[[Path], None], text: str
) -> None:
    folder = make_bundle()
    spoil(folder)
    with pytest.raises(BundleError, match=text):
        load(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere/manifest\.json: cannot be read"):
        load(tmp_path / "nowhere")
