"""Writing a bundle: complete or not at all, the same bytes again, and loadable."""

import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference_core.bundle import load_bundle
from inference_core.confidence import Scorer
from inference_core.errors import BundleError
from inference_core.manifest import Calibration, TensorInfo
from inference_core.tensors import DATATYPES
from tests.toolchain import networks
from toolchain.package import CutPieces, OnnxFile, Pieces, golden_inputs, package
from toolchain.runs import CPU
from toolchain.split import split


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    samples = networks.inputs(100)
    halves = split(networks.full_network(), ["inner"], samples, samples)
    return Pieces(
        model="shapes",
        version="1",
        input=TensorInfo(name="input", datatype="FP32", shape=(1, 8, 8)),
        output=TensorInfo(name="logits", datatype="FP32", shape=(3,)),
        input_range=(-2.0, 2.0),
        preprocess=networks.PREPROCESS,
        labels=networks.LABELS,
        reference="labels",
        full=OnnxFile(networks.full_network(), "fp32", accuracy=0.75, latency_ms=1.5),
        variants={"fp32": OnnxFile(networks.edge_network(), "fp32")},
        edge="fp32",
        cuts={"inner": CutPieces(halves.head, halves.tail, halves.boundary, 0.5, 0.25, 0.125)},
        calibration=Calibration(scorer=Scorer.MARGIN, temperature=0.5, threshold=0.25, samples=100),
        report={"notes": ["é"]},
        page="<p>é</p>",
    )


def _content(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


def test_every_file_is_named_and_loads(pieces: Pieces, tmp_path: Path) -> None:
    bundle = package(pieces, tmp_path / "new" / "shapes")
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "edge.fp32.onnx",
        "full.onnx",
        "golden.npz",
        "head.inner.onnx",
        "manifest.json",
        "report.html",
        "report.json",
        "tail.inner.onnx",
    ]
    manifest = load_bundle(bundle.folder).manifest
    cut = manifest.cuts[0]
    for file in (manifest.full, manifest.edge_variant, cut.head, cut.tail):
        bundle.engine(file, threads=1, providers=CPU)
    assert manifest.calibration == pieces.calibration
    assert (manifest.labels, manifest.preprocess) == (pieces.labels, pieces.preprocess)


def test_the_same_pieces_give_the_same_bytes(pieces: Pieces, tmp_path: Path) -> None:
    first, second = package(pieces, tmp_path / "first"), package(pieces, tmp_path / "second")
    assert first.digest == second.digest
    assert dict(_content(first.folder)) == dict(_content(second.folder))


def test_figures_go_into_the_manifest_and_the_report_beside_it(pieces: Pieces, tmp_path: Path) -> None:
    bundle = package(pieces, tmp_path / "shapes")
    manifest, cut = bundle.manifest, bundle.manifest.cuts[0]
    assert (manifest.full.accuracy, manifest.full.latency_ms) == (0.75, 1.5)
    assert (manifest.edge_variant.accuracy, manifest.reference) == (None, "labels")
    assert (cut.agreement, cut.head_ms, cut.tail_ms) == (0.5, 0.25, 0.125)
    assert json.loads((bundle.folder / "report.json").read_text("utf-8")) == pieces.report
    assert (bundle.folder / "report.html").read_text("utf-8") == pieces.page
    without = package(replace(pieces, page=""), tmp_path / "without")
    assert not (without.folder / "report.html").exists()


def test_what_is_there_is_replaced_only_on_request(pieces: Pieces, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    before = dict(_content(package(pieces, folder).folder))
    with pytest.raises(BundleError, match="exists already"):
        package(replace(pieces, version="2"), folder)
    assert dict(_content(folder)) == before
    assert package(replace(pieces, version="2"), folder, replace=True).manifest.version == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("round", "flat")}, "2 labels, but the output has shape"),
        ({"edge": "int8"}, "is not the name of a variant"),
        ({"model": "Not A Name"}, "model 'Not A Name'"),
        ({"input": TensorInfo(name="input", datatype="FP32", shape=(1, 4, 4))}, r"shape must be \[-1, 1, 8"),
        ({"full": OnnxFile(b"no model", "fp32")}, "full.onnx"),
        ({"variants": {"a/b": OnnxFile(networks.full_network(), "fp32")}}, "is not a plain name"),
    ],
)
def test_pieces_that_do_not_fit_leave_nothing_behind(
    pieces: Pieces, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    package(pieces, tmp_path / "shapes")
    before = dict(_content(tmp_path / "shapes"))
    with pytest.raises(BundleError, match=message):
        package(replace(pieces, **change), tmp_path / "shapes", replace=True)  # type: ignore[arg-type]
    assert dict(_content(tmp_path / "shapes")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_golden_inputs_are_seeded_smooth_and_in_range() -> None:
    info = TensorInfo(name="x", datatype="FP32", shape=(3, 16, 16))
    inputs = golden_inputs(info, -1.5, 2.5)
    assert inputs.shape == (4, 3, 16, 16)
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs, golden_inputs(info, -1.5, 2.5))
    assert np.allclose(inputs.min(axis=(1, 2, 3)), -1.5)
    assert np.allclose(inputs.max(axis=(1, 2, 3)), 2.5)
    assert np.abs(np.diff(inputs, axis=3)).mean() < 1.2 * np.abs(inputs - inputs.mean()).mean()


@pytest.mark.parametrize("shape", [(5,), (7, 3), (1,), (2, 3, 4, 5)])
def test_golden_inputs_have_the_models_shape(shape: tuple[int, ...]) -> None:
    inputs = golden_inputs(TensorInfo(name="x", datatype="FP32", shape=shape), 0, 1)
    assert inputs.shape == (4, *shape)
    assert np.isfinite(inputs).all()


@pytest.mark.parametrize(("datatype", "low", "high"), [("INT64", 0, 1), ("INT32", -3, 9), ("UINT8", 0, 255)])
def test_golden_whole_numbers_reach_both_ends(datatype: str, low: int, high: int) -> None:
    inputs = golden_inputs(TensorInfo(name="x", datatype=datatype, shape=(2000,)), low, high)
    assert inputs.dtype == DATATYPES[datatype]
    assert (inputs.min(), inputs.max()) == (low, high)


def test_a_folder_that_is_no_bundle_is_never_replaced(pieces: Pieces, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    for path in (photos, tmp_path / "file"):
        with pytest.raises(BundleError, match="is no bundle, so it is not replaced"):
            package(pieces, path, replace=True)
    assert (photos / "1.png").read_bytes() == (tmp_path / "file").read_bytes() == b"dear"
    (tmp_path / "empty").mkdir()
    assert package(pieces, tmp_path / "empty", replace=True).manifest.model == "shapes"


def test_a_bundle_may_be_named_from_within_or_by_a_link(
    pieces: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("shapes")
    folder = package(pieces, tmp_path / "link").folder
    assert folder == tmp_path / "shapes"
    monkeypatch.chdir(folder)
    assert package(replace(pieces, version="2"), Path(), replace=True).manifest.version == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "shapes"]


def test_folders_that_were_made_for_nothing_are_removed_again(pieces: Pieces, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        package(replace(pieces, edge="int8"), tmp_path / "a" / "b" / "shapes")
    assert not any(tmp_path.iterdir())


def test_a_file_that_does_not_fit_on_the_disk_leaves_what_was_there(pieces: Pieces, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    before = dict(_content(package(pieces, folder).folder))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(BundleError, match=r"shapes: cannot be written \(File too large\)"):
            package(replace(pieces, version="2"), folder, replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert dict(_content(folder)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_golden_outputs_tell_a_wrong_model(pieces: Pieces, tmp_path: Path) -> None:
    bundle = package(pieces, tmp_path / "shapes")
    wrong = replace(pieces, full=OnnxFile(networks.full_network(noise=0.3), "fp32"))
    other = package(wrong, tmp_path / "other")
    # The other model under the first one's golden outputs, with its digest made to fit.
    (bundle.folder / "full.onnx").write_bytes((other.folder / "full.onnx").read_bytes())
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    for key in ("sha256", "bytes"):
        manifest["full"][key] = getattr(other.manifest.full, key)
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    forged = load_bundle(bundle.folder)
    with pytest.raises(BundleError, match="differs from its golden value"):
        forged.engine(forged.manifest.full, threads=1, providers=CPU)
