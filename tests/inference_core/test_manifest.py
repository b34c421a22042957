"""The manifest's own rules, on a whole one with one thing changed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference_core.manifest import Certificate, File, Manifest, TensorInfo
from inference_core.tensors import DATATYPES
from tests.bundles import write_bundle

DIGEST = "0" * 64


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_bundle(tmp_path_factory.mktemp("bundle"))
    made: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return made


def changed(content: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy in which `path` ("cuts.0.name") leads to `value`, or to nothing for `value` = ...."""
    result: Any = copy.deepcopy(content)
    at = result
    *way, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in way:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    assert isinstance(result, dict)
    return result


def test_a_whole_manifest(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(content)
    assert manifest.edge_variant.file == "edge-int8.onnx"
    assert [cut.bytes for cut in manifest.cuts] == [192, 3]
    assert manifest.cut("means") == manifest.cuts[1]
    assert manifest.cut("nowhere") is None


def test_it_goes_through_json_unchanged(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(content)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_each_file_takes_and_gives_what_its_place_says(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(content)
    cut = manifest.cuts[1]
    for variant in (*manifest.variants, manifest.full):
        assert (manifest.takes(variant), manifest.gives(variant)) == ((manifest.input,), (manifest.output,))
    assert (manifest.takes(cut.head), manifest.gives(cut.head)) == ((manifest.input,), cut.boundary)
    assert (manifest.takes(cut.tail), manifest.gives(cut.tail)) == (cut.boundary, (manifest.output,))


@pytest.mark.parametrize("cut", ["pixels", "means"])
def test_an_early_exit_gives_the_features_beside_the_logits(content: dict[str, Any], cut: str) -> None:
    manifest = Manifest.model_validate(changed(content, "variants.1.cut", cut))
    plain, exiting = manifest.variants
    boundary = next(c.boundary for c in manifest.cuts if c.name == cut)
    assert manifest.edge_variant is exiting
    assert (manifest.takes(exiting), manifest.gives(exiting)) == (
        (manifest.input,),
        (manifest.output, *boundary),
    )
    assert manifest.exit_cut(exiting) == manifest.cut(cut)
    for other in (plain, manifest.full):
        assert (manifest.gives(other), manifest.exit_cut(other)) == ((manifest.output,), None)


@pytest.mark.parametrize(
    ("path", "value", "heads"),
    [
        ("variants.1.cut", None, ["pixels", "means"]),
        ("variants.0.cut", "means", ["pixels", "means"]),
        ("variants.1.cut", "means", ["pixels"]),
    ],
)
def test_the_edge_runs_the_heads_that_no_exit_of_its_own_stands_for(
    content: dict[str, Any], path: str, value: str | None, heads: list[str]
) -> None:
    manifest = Manifest.model_validate(changed(content, path, value))
    assert manifest.heads == {cut.name: cut.head for cut in manifest.cuts if cut.name in heads}


CERTIFICATE = {
    "bounds": "risk",
    "bound": 0.01,
    "confidence": 0.95,
    "samples": 1000,
    "method": "ltt",
    "digests": [DIGEST],
}


def test_what_was_not_measured_may_be_left_out(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(changed(content, "calibration.certificate", CERTIFICATE))
    calibration, certificate = manifest.calibration, manifest.calibration.certificate
    assert certificate is not None
    assert manifest.reference == "labels"
    assert {variant.cut for variant in (*manifest.variants, manifest.full)} == {None}
    assert (calibration.ece, certificate.observed, certificate.escalated) == (None, None, None)
    assert {(point.agreement, point.risk) for point in calibration.curve} == {(None, None)}


@pytest.mark.parametrize(
    "path",
    [
        "calibration.ece",
        "calibration.curve.0.agreement",
        "calibration.curve.1.risk",
        "calibration.certificate.observed",
        "calibration.certificate.escalated",
    ],
)
def test_what_was_measured_is_a_share(content: dict[str, Any], path: str) -> None:
    certified = changed(content, "calibration.certificate", CERTIFICATE)
    for share in (0.0, 0.25, 1.0):
        manifest = Manifest.model_validate(changed(certified, path, share))
        value: Any = manifest.model_dump()
        for part in path.split("."):
            value = value[int(part) if part.isdigit() else part]
        assert value == share
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    for bad in (-0.01, 1.01, float("nan"), "much"):
        with pytest.raises(ValidationError, match=f"(?m)^{path.replace('.', '[.]')}$"):
            Manifest.model_validate(changed(certified, path, bad))


def test_the_reference_may_be_the_full_models_answers(content: dict[str, Any]) -> None:
    assert Manifest.model_validate(changed(content, "reference", "full")).reference == "full"


REQUIRED = [
    "format",
    "model",
    "version",
    "task",
    "input",
    "output",
    "preprocess",
    "labels",
    "edge",
    "variants",
    "full",
    "cuts",
    "calibration",
    "golden",
    "input.name",
    "input.datatype",
    "input.shape",
    "variants.0.name",
    "variants.0.precision",
    "variants.0.file",
    "variants.0.sha256",
    "variants.0.bytes",
    "cuts.0.head",
    "cuts.0.tail",
    "cuts.0.boundary",
    "calibration.scorer",
    "calibration.temperature",
    "calibration.threshold",
    "calibration.samples",
    "golden.tolerance",
    "golden.feature_steps",
]


@pytest.mark.parametrize("path", REQUIRED)
def test_required_fields(content: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError, match=f"(?m)^{path.replace('.', '[.]')}$\n  Field required"):
        Manifest.model_validate(changed(content, path, ...))


@pytest.mark.parametrize(
    "path",
    [
        "extra",
        "input.extra",
        "variants.0.extra",
        "full.extra",
        "cuts.1.extra",
        "cuts.0.head.extra",
        "calibration.extra",
        "calibration.curve.0.extra",
        "golden.extra",
        "preprocess.extra",
    ],
)
def test_unknown_fields_are_refused(content: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Manifest.model_validate(changed(content, path, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "path",
    [
        "variants.0.accuracy",
        "variants.0.latency_ms",
        "cuts.0.agreement",
        "cuts.0.head_ms",
        "calibration.temperature",
        "calibration.threshold",
        "calibration.curve.0.accuracy",
        "golden.tolerance",
        "preprocess.scale",
    ],
)
def test_numbers_are_finite(content: dict[str, Any], path: str, bad: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Manifest.model_validate(changed(content, path, bad))


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("model", "../evil", "does not match"),
        ("model", "Digits", "does not match"),
        ("model", "", "does not match"),
        ("variants.0.name", "fp 32", "variant 'fp 32' does not match"),
        ("full.name", "..", "full model '..' does not match"),
        ("cuts.0.name", "a/b", "cut 'a/b' does not match"),
        ("cuts.0.name", "means", "two cuts have the same name"),
        ("variants.0.name", "int8", "two variants have the same name"),
        ("edge", "int4", "edge 'int4' is not the name of a variant"),
        ("version", "", "version"),
        ("version", "../1", "version"),
        ("version", "1\n", "version"),
        ("version", "1" * 65, "version"),
        ("version", 1, "version"),
        ("task", "detection", "task"),
        ("labels", ["red", "green"], "2 labels, but the output has shape"),
        ("labels", [], "0 labels"),
        ("output.shape", [3, 1], "3 labels, but the output has shape"),
        ("output.shape", [], "3 labels"),
        ("input.shape", [3, 0, 8], "input.shape.1"),
        ("input.shape", [3, -1, 8], "input.shape.1"),
        ("input.shape", [8, 8, 3], "preprocess makes"),
        ("input.datatype", "UINT8", "preprocess makes FP32, input is UINT8"),
        ("input.datatype", "float32", "is not one of BOOL"),
        ("preprocess.height", 9, "preprocess makes"),
        ("variants", [], "variants"),
        ("variants.0.precision", "int2", "precision"),
        ("variants.0.bytes", -1, "bytes"),
        ("variants.0.sha256", "0" * 63, "sha256"),
        ("variants.0.sha256", "A" * 64, "sha256"),
        ("variants.0.file", "../m.onnx", "is not a plain name"),
        ("variants.0.file", "/etc/passwd", "is not a plain name"),
        ("variants.0.accuracy", 1.01, "accuracy"),
        ("variants.0.latency_ms", 0, "latency_ms"),
        ("variants.0.cut", "stem", "variant 'fp32' exits at 'stem', which is not a cut"),
        ("variants.1.cut", "", "variant 'int8' exits at '', which is not a cut"),
        ("full.cut", "means", "full model 'full' exits at 'means': only variants may"),
        ("full.cut", "stem", "full model 'full' exits at 'stem': only variants may"),
        ("reference", "edge", "reference"),
        ("full.file", "sub/full.onnx", "is not a plain name"),
        ("cuts.0.head.file", "..", "is not a plain name"),
        ("cuts.0.tail.file", "", "is not a plain name"),
        ("cuts.0.boundary.0.datatype", "UINT4", "is not one of BOOL"),
        ("golden.file", "golden.npz\0", "is not a plain name"),
        ("golden.tolerance", 0, "tolerance"),
        ("golden.tolerance", 1.5, "tolerance"),
        ("golden.feature_steps", 256, "feature_steps"),
        ("calibration.scorer", "softmax", "scorer"),
        ("calibration.temperature", 0, "temperature"),
        ("calibration.threshold", 1.5, "threshold"),
        ("calibration.samples", 0, "samples"),
        ("calibration.curve.1.escalated", -0.1, "escalated"),
        ("calibration.certificate", {"bounds": "risk"}, "certificate.bound"),
    ],
)
def test_one_wrong_thing(content: dict[str, Any], path: str, value: object, rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate(changed(content, path, value))
    assert rule in str(caught.value)


def test_tensors_only_need_no_preprocessing(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(
        changed(changed(content, "preprocess", None), "input.datatype", "UINT8")
    )
    assert manifest.preprocess is None


def test_records_cannot_be_changed(content: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(content)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.model = "other"
    with pytest.raises(ValidationError, match="frozen"):
        manifest.calibration.threshold = 0.0


@pytest.mark.parametrize(("datatype", "dtype"), DATATYPES.items())
def test_bytes_of_a_tensor(datatype: str, dtype: Any) -> None:
    assert TensorInfo(name="x", datatype=datatype, shape=(3, 5)).bytes == 15 * dtype.itemsize
    assert TensorInfo(name="x", datatype=datatype, shape=()).bytes == dtype.itemsize


def test_bytes_of_a_giant_tensor_do_not_wrap() -> None:
    assert TensorInfo(name="x", datatype="FP32", shape=(2**40, 2**40)).bytes == 2**82


def test_a_certificate_names_what_it_holds_for() -> None:
    fields = {"bounds": "accuracy loss", "bound": 0.01, "confidence": 0.95, "samples": 1000, "method": "ltt"}
    certificate = Certificate.model_validate({**fields, "digests": [DIGEST]})
    assert certificate.digests == (DIGEST,)
    with pytest.raises(ValidationError, match="digests"):
        Certificate.model_validate(fields)


def test_a_file_is_told_by_all_of_its_fields() -> None:
    file = File(file="a.onnx", sha256=DIGEST, bytes=1)
    assert file == File(file="a.onnx", sha256=DIGEST, bytes=1)
    assert file != File(file="a.onnx", sha256=DIGEST, bytes=2)


def test_the_example_is_deterministic(content: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads((write_bundle(tmp_path) / "manifest.json").read_text()) == content
