"""Writing a bundle: complete or not at all, the same bytes again, and loadable."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference_core.bundle import load_bundle
from inference_core.confidence import Scorer
from inference_core.errors import BundleError
from inference_core.manifest import Calibration, TensorInfo
from tests.toolchain import networks
from toolchain.evaluate import CPU, evaluate_bundle
from toolchain.package import CutPieces, OnnxFile, Pieces, golden_inputs, package
from toolchain.split import split


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    samples = networks.inputs(100)
    halves = split(networks.full_network(), "inner", samples, samples)
    return Pieces(
        model="shapes",
        version="1",
        input=TensorInfo(name="input", datatype="FP32", shape=(1, 8, 8)),
        output=TensorInfo(name="logits", datatype="FP32", shape=(3,)),
        input_range=(-2.0, 2.0),
        preprocess=networks.PREPROCESS,
        labels=networks.LABELS,
        full=OnnxFile(networks.full_network(), "fp32"),
        variants={"fp32": OnnxFile(networks.edge_network(), "fp32")},
        edge="fp32",
        cuts={"inner": CutPieces(halves.head, halves.tail, halves.boundary)},
        calibration=Calibration(scorer=Scorer.MARGIN, temperature=0.5, threshold=0.25, samples=100),
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


def test_figures_go_into_the_manifest_and_the_report(pieces: Pieces, tmp_path: Path) -> None:
    figures = evaluate_bundle(package(pieces, tmp_path / "first"), networks.images(50))
    bundle = package(replace(pieces, figures=figures, notes={"machine": "test"}), tmp_path / "second")
    manifest = bundle.manifest
    assert manifest.full.accuracy == 1.0
    assert manifest.edge_variant.accuracy == figures.edge_figures.accuracy
    assert manifest.cuts[0].agreement == figures.cuts["inner"].agreement
    assert manifest.cuts[0].tail_ms == figures.cuts["inner"].tail_ms
    report = json.loads((bundle.folder / "report.json").read_text())
    assert report["machine"] == "test"
    assert report["figures"]["cascade_accuracy"] == figures.cascade_accuracy


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
    inputs = golden_inputs((3, 16, 16), -1.5, 2.5)
    assert inputs.shape == (4, 3, 16, 16)
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs, golden_inputs((3, 16, 16), -1.5, 2.5))
    assert np.allclose(inputs.min(axis=(1, 2, 3)), -1.5)
    assert np.allclose(inputs.max(axis=(1, 2, 3)), 2.5)
    assert np.abs(np.diff(inputs, axis=3)).mean() < 0.6 * np.abs(inputs - inputs.mean()).mean() * 2
    assert golden_inputs((5,), 0, 1).shape == (4, 5)


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
