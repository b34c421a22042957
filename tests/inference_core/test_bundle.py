"""A whole bundle loads; with any one thing broken it is refused, and the refusal says what and where."""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from inference_core.bundle import FORMAT, MANIFEST, Bundle, File, load_bundle
from inference_core.confidence import Scorer, score, softmax
from inference_core.engine import Engine
from inference_core.errors import BundleError
from inference_core.trust import sha256
from tests.bundles import (
    EXIT,
    GOLDEN,
    LABELS,
    SURE,
    SURE_BUT_WRONG,
    UNSURE,
    UNSURE_AND_RIGHT,
    Color,
    change_exit,
    constant,
    edited,
    model_bytes,
    npz_bytes,
    picture,
    pixels,
    pool_and_classify,
    replace_file,
    write_bundle,
)

MakeBundle = Callable[..., Path]
CPU = ("CPUExecutionProvider",)


def engine(bundle: Bundle, file: File) -> Engine:
    return bundle.engine(file, threads=1, providers=CPU)


def files(bundle: Bundle) -> list[File]:
    """Every ONNX file of the bundle."""
    ends = [end for cut in bundle.manifest.cuts for end in (cut.head, cut.tail)]
    return [*bundle.manifest.variants, bundle.manifest.full, *ends]


def load_all(folder: Path) -> dict[str, Engine]:
    bundle = load_bundle(folder)
    return {file.file: engine(bundle, file) for file in files(bundle)}


def refusal(folder: Path) -> str:
    """What loading everything in `folder` says."""
    with pytest.raises(BundleError) as caught:
        load_all(folder)
    return str(caught.value)


# ---- a whole bundle


def test_every_file_loads(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    assert sorted(load_all(folder)) == sorted(path.name for path in folder.glob("*.onnx"))


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": False},
        {"cuts": ()},
        {"cuts": ("means",)},
        {"exit_at": "pixels"},
        {"exit_at": "means", "cuts": ("means",), "full_work": 1},
        {"full_work": 2},
        {"model": "other", "version": "2.0-rc1"},
        {"gain": 1.0, "edge_bias": (1, 2, 3), "full_bias": (0, 0, 0)},
        {"scorer": "entropy", "temperature": 2.5, "threshold": 0.0},
    ],
)
def test_every_kind_of_test_bundle_is_valid(make_bundle: MakeBundle, changes: dict[str, Any]) -> None:
    load_all(make_bundle(**changes))


def test_digest_is_that_of_the_manifest(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    bundle = load_bundle(folder)
    assert bundle.digest == sha256((folder / MANIFEST).read_bytes())
    assert load_bundle(make_bundle("same")).digest == bundle.digest
    assert load_bundle(make_bundle("other", full_bias=(5, 0, 0))).digest != bundle.digest


def test_read_gives_the_bytes(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    bundle = load_bundle(folder)
    for file in files(bundle):
        assert bundle.read(file) == (folder / file.file).read_bytes()


def test_other_files_in_the_folder_do_not_matter(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "report.html").write_text("<p>")
    (folder / "link").symlink_to("/etc/passwd")
    load_all(folder)


def test_sample_is_one_row_that_each_file_takes(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    bundle = load_bundle(folder)
    for file in files(bundle):
        outputs = engine(bundle, file).run(bundle.sample(file))
        assert [len(rows) for rows in outputs.values()] == [1]


@pytest.mark.parametrize(
    ("color", "edge", "confidence", "full"),
    [
        (SURE, "red", 1.0, "red"),
        (UNSURE, "red", 0.369, "blue"),
        (UNSURE_AND_RIGHT, "blue", 0.369, "blue"),
        (SURE_BUT_WRONG, "red", 0.965, "blue"),
    ],
)
def test_colours_decide_as_the_table_says(
    make_bundle: MakeBundle, color: Color, edge: str, confidence: float, full: str
) -> None:
    folder = make_bundle()
    engines, rules = load_all(folder), load_bundle(folder).manifest.preprocess
    assert rules is not None
    for form in ("PNG", "JPEG", "WEBP"):
        given = {"input": rules.tensor(picture(color, form))}
        logits = engines["edge-int8.onnx"].run(given)["logits"]
        assert LABELS[logits.argmax()] == edge
        assert score(softmax(logits), Scorer.MAX_PROBABILITY) == pytest.approx(confidence, abs=0.02)
        assert LABELS[engines["full.onnx"].run(given)["logits"].argmax()] == full
    np.testing.assert_array_equal(rules.tensor(picture(color)), pixels(color))


def test_tail_of_head_is_the_full_model(make_bundle: MakeBundle) -> None:
    engines = load_all(make_bundle())
    given = {"input": pixels(SURE, UNSURE, SURE_BUT_WRONG)}
    expected = engines["full.onnx"].run(given)["logits"]
    for cut in ("pixels", "means"):
        features = engines[f"head-{cut}.onnx"].run(given)
        assert features["features"].dtype == np.uint8
        np.testing.assert_allclose(engines[f"tail-{cut}.onnx"].run(features)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("cut", ["pixels", "means"])
def test_an_early_exit_says_what_the_edge_says_and_feeds_the_tail(make_bundle: MakeBundle, cut: str) -> None:
    engines = load_all(make_bundle(exit_at=cut))
    given = {"input": pixels(SURE, UNSURE, UNSURE_AND_RIGHT, SURE_BUT_WRONG)}
    outputs = engines[EXIT].run(given)
    assert outputs.keys() == {"logits", "features"}
    np.testing.assert_allclose(outputs["logits"], engines["edge-fp32.onnx"].run(given)["logits"], atol=1e-4)
    answers = engines[f"tail-{cut}.onnx"].run({"features": outputs["features"]})["logits"]
    np.testing.assert_allclose(answers, engines["full.onnx"].run(given)["logits"], atol=1e-4)


# ---- the manifest as a file


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"manifest\.json: cannot be read: No such file"):
            load_bundle(folder)


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read: Is a directory"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"not json",
        b'{"format": 1,}',
        b'{"format": ' + b"9" * 5000 + b"}",
        pytest.param(b"[" * 200_000, id="nested lists"),
        pytest.param(b'{"a":' * 200_000, id="nested objects"),
    ],
)
def test_a_manifest_that_is_not_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json: not JSON"):
        load_bundle(tmp_path)


def test_a_manifest_that_is_too_long(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate((4 << 20) + 1)
    with pytest.raises(BundleError, match=r"manifest\.json: over the limit of 4194304 bytes"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("content", ["null", "[]", "1", '"text"', "{}", '{"format": null}'])
def test_a_manifest_without_a_format(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json: format: must be a whole number from 1 to 1"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("version", [0, -1, True, False, 1.0, "1", [1]])
def test_a_format_is_a_whole_number(make_bundle: MakeBundle, version: object) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        content["format"] = version
    assert refusal(folder) == f"{folder / MANIFEST}: format: must be a whole number from 1 to {FORMAT}"


def test_a_newer_format_says_what_to_do(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        content["format"] = FORMAT + 1
        content["something-new"] = {}
    assert re.search(r"manifest\.json: format: 2 is newer .* update it", refusal(folder))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_lacks(make_bundle: MakeBundle, text: str) -> None:
    folder = make_bundle()
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"threshold": 0.8', f'"threshold": {text}'))
    assert refusal(folder).startswith(f"{path}: calibration.threshold: Input should be a finite number")


@pytest.mark.parametrize(
    ("change", "where", "rule"),
    [
        (lambda c: c.update(surprise=1), "surprise", "Extra inputs"),
        (lambda c: c["calibration"].update(surprise=1), "calibration.surprise", "Extra inputs"),
        (lambda c: c.pop("golden"), "golden", "required"),
        (lambda c: c["cuts"][1].update(name="pixels"), "manifest", "two cuts have the same name"),
        (lambda c: c.update(model="../up"), "manifest", "model '../up' does not match"),
        (lambda c: c["full"].update(file="../full.onnx"), "full", "'../full.onnx' is not a plain name"),
        (lambda c: c.update(labels=["a", "b"]), "manifest", "2 labels, but the output has shape [3]"),
        (lambda c: c["cuts"][0]["head"].update(sha256="x"), "cuts.0.head.sha256", "match pattern"),
        (lambda c: c["input"].update(shape=[10**400, 8, 8]), "manifest", "preprocess makes"),
        (lambda c: c["calibration"].update(temperature=10**400), "calibration.temperature", "number"),
    ],
)
def test_refusals_name_the_field(
    make_bundle: MakeBundle, change: Callable[[dict[str, Any]], object], where: str, rule: str
) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        change(content)
    message = refusal(folder)
    assert message.startswith(f"{folder / MANIFEST}: {where}: ")
    assert rule in message


# ---- the files


ONNX_FILES = [f"{n}.onnx" for n in ("edge-int8", "full", "head-means", "tail-means")]


@pytest.mark.parametrize("name", [*ONNX_FILES, GOLDEN])
def test_one_flipped_bit(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert f"{folder / name}: SHA-256 is {sha256(bytes(data))}, the manifest says " in refusal(folder)


@pytest.mark.parametrize("name", [*ONNX_FILES, GOLDEN])
def test_a_missing_file(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    (folder / name).unlink()
    assert refusal(folder) == f"{folder / name}: cannot be read: No such file or directory"


@pytest.mark.parametrize("name", [*ONNX_FILES, GOLDEN])
def test_another_size(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data + b"\0")
    assert refusal(folder) == f"{folder / name}: {len(data) + 1} bytes, the manifest says {len(data)}"


@pytest.mark.parametrize("name", [*ONNX_FILES, GOLDEN])
def test_a_symbolic_link_to_the_right_bytes(make_bundle: MakeBundle, tmp_path: Path, name: str) -> None:
    folder = make_bundle()
    os.replace(folder / name, tmp_path / name)  # noqa: PTH105
    (folder / name).symlink_to(tmp_path / name)
    assert refusal(folder) == f"{folder / name}: a symbolic link, which a bundle must not hold"


def test_a_folder_in_the_place_of_a_file(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "full.onnx").unlink()
    (folder / "full.onnx").mkdir()
    with edited(folder) as content:
        content["full"]["bytes"] = (folder / "full.onnx").stat().st_size
    assert refusal(folder) == f"{folder / 'full.onnx'}: cannot be read: Is a directory"


def test_external_data(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    model = onnx.load_model_from_string((folder / "full.onnx").read_bytes())
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    (folder / "weights.bin").write_bytes(np.eye(3, dtype=np.float32).tobytes())
    replace_file(folder, "full.onnx", model.SerializeToString())
    assert refusal(folder) == (f"{folder / 'full.onnx'}: tensor 'weights' keeps its data outside the file")


@pytest.mark.parametrize("data", [b"", b"junk", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_onnx(make_bundle: MakeBundle, data: bytes) -> None:
    folder = make_bundle()
    replace_file(folder, "full.onnx", data)
    assert refusal(folder).startswith(f"{folder / 'full.onnx'}: not an ONNX file")


def test_a_model_that_does_not_load(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    nodes = [helper.make_node("NoSuchOperator", ["input"], ["logits"])]
    replace_file(folder, "full.onnx", model_bytes([*nodes]))
    assert re.search(r"full\.onnx: .*NoSuchOperator", refusal(folder))


def test_a_provider_that_is_not_there(make_bundle: MakeBundle) -> None:
    bundle = load_bundle(make_bundle())
    with pytest.raises(BundleError, match=r"full\.onnx: none of the providers \['NoSuchProvider'\]"):
        bundle.engine(bundle.manifest.full, threads=1, providers=("NoSuchProvider",))


# ---- the model against the manifest


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda c: c["output"].update(name="probabilities"), "outputs ['logits'], the manifest says"),
        (lambda c: c["input"].update(name="image"), "inputs ['input'], the manifest says ['image']"),
        (lambda c: c["output"].update(datatype="FP64"), "'logits' is FP32[-1, 3], the manifest says FP64[3]"),
        (
            lambda c: c.update(labels=["a"] * 4, output={**c["output"], "shape": [4]}),
            "'logits' is FP32[-1, 3], the manifest says FP32[4]",
        ),
        (
            lambda c: c.update(preprocess=None, input={**c["input"], "shape": [3, 64]}),
            "'input' is FP32[-1, 3, 8, 8], the manifest says FP32[3, 64]",
        ),
    ],
)
def test_a_model_is_what_the_manifest_says(
    make_bundle: MakeBundle, change: Callable[[dict[str, Any]], object], rule: str
) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        change(content)
    message = refusal(folder)
    assert message.startswith("edge-fp32.onnx: ")
    assert rule in message


@pytest.mark.parametrize(
    ("boundary", "rule"),
    [
        ([], "outputs ['features'], the manifest says []"),
        ([{"name": "other", "datatype": "UINT8", "shape": [3]}], "the manifest says ['other']"),
        ([{"name": "features", "datatype": "INT8", "shape": [3]}], "the manifest says INT8[3]"),
        ([{"name": "features", "datatype": "UINT8", "shape": [4]}], "the manifest says UINT8[4]"),
    ],
)
def test_a_boundary_is_what_the_manifest_says(
    make_bundle: MakeBundle, boundary: list[dict[str, Any]], rule: str
) -> None:
    folder = make_bundle(cuts=("means",))
    with edited(folder) as content:
        content["cuts"][0]["boundary"] = boundary
    bundle = load_bundle(folder)
    (cut,) = bundle.manifest.cuts
    for file in (cut.tail, cut.head) if boundary else (cut.tail,):
        with pytest.raises(BundleError, match=f"^{file.file}: ") as caught:
            engine(bundle, file)
        assert rule.replace("outputs", "inputs") in str(caught.value)


def test_an_early_exit_without_its_features(make_bundle: MakeBundle) -> None:
    folder = make_bundle(exit_at="means")
    change_exit(folder, lambda graph: graph.output.pop())
    assert refusal(folder) == f"{EXIT}: outputs ['logits'], the manifest says ['features', 'logits']"


def test_an_early_exit_at_another_cut_than_the_manifest_says(make_bundle: MakeBundle) -> None:
    folder = make_bundle(exit_at="means")
    with edited(folder) as content:
        content["variants"][2]["cut"] = "pixels"
    assert refusal(folder) == (
        f"{EXIT}: output 'features' is UINT8[-1, 3], the manifest says UINT8[3, 8, 8] behind a batch axis"
    )


def test_features_that_the_manifest_keeps_to_itself_do_no_harm(make_bundle: MakeBundle) -> None:
    folder = make_bundle(exit_at="means")
    with edited(folder) as content:
        del content["variants"][2]["cut"]
    load_all(folder)


# ---- golden inputs and outputs


def regolden(folder: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    """Change the golden arrays in `folder` and let the manifest vouch for them."""
    with np.load(folder / GOLDEN) as archive:
        arrays = dict(archive)
    change(arrays)
    replace_file(folder, GOLDEN, npz_bytes(arrays))


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return out.getvalue()


GIANT = (
    b"\x93NUMPY\x01\0\x76\0"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117)
    + b"\n"
)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"junk" * 100, id="junk"),
        pytest.param(b"PK\3\4 but no archive", id="broken zip"),
        pytest.param(npy(), id="npy"),
        pytest.param(archive(input=npy()[:-5]), id="cut off member"),
        pytest.param(archive(input=GIANT), id="8 TiB member"),
        pytest.param(npz_bytes({"input": np.array([{"a": 1}], object)}), id="pickled objects"),
        pytest.param(npz_bytes({"input": np.zeros(1), "x": np.array([None])}), id="one pickled object"),
    ],
)
def test_golden_that_is_not_an_archive_of_plain_arrays(make_bundle: MakeBundle, data: bytes) -> None:
    folder = make_bundle()
    replace_file(folder, GOLDEN, data)
    assert refusal(folder) == f"{GOLDEN}: not an npz archive of plain arrays"


@pytest.mark.parametrize("member", [b"", b"plain text, which NumPy hands on as bytes"])
def test_golden_members_that_are_not_arrays(make_bundle: MakeBundle, member: bytes) -> None:
    folder = make_bundle()
    replace_file(folder, GOLDEN, archive(input=member))
    assert refusal(folder) == f"{GOLDEN}: 'input' does not hold finite numbers"


def test_golden_archive_cut_off_anywhere(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    data = (folder / GOLDEN).read_bytes()
    for length in range(0, len(data), 701):
        replace_file(folder, GOLDEN, data[:length])
        assert refusal(folder) == f"{GOLDEN}: not an npz archive of plain arrays"


def test_a_pickle_in_the_golden_file_is_never_run(make_bundle: MakeBundle, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = make_bundle()
    replace_file(folder, GOLDEN, npz_bytes({"input": np.array([Trap()], object)}))
    refusal(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda a: a.pop("input"), "golden.npz: holds no 'input'"),
        (lambda a: a.pop("full.onnx:logits"), "full.onnx: golden outputs [], has ['logits']"),
        (
            lambda a: a.update({"full.onnx:more": np.zeros(1)}),
            "full.onnx: golden outputs ['logits', 'more'], has ['logits']",
        ),
        (
            lambda a: a.update({"full.onnx:logits": a["full.onnx:logits"] * 1.05}),
            "full.onnx: output 'logits' differs from its golden value",
        ),
        (
            lambda a: a.update({"full.onnx:logits": a["full.onnx:logits"][:2]}),
            "full.onnx: output 'logits' is float32[4, 3], its golden value float32[2, 3]",
        ),
        (
            lambda a: a.update({"full.onnx:logits": a["full.onnx:logits"].astype("f8")}),
            "full.onnx: output 'logits' is float32[4, 3], its golden value float64[4, 3]",
        ),
        (
            lambda a: a.update({"full.onnx:logits": np.full((4, 3), np.nan, "f4")}),
            "golden.npz: 'full.onnx:logits' does not hold finite numbers",
        ),
        (
            lambda a: a.update({"full.onnx:logits": np.full((4, 3), np.inf, "f4")}),
            "golden.npz: 'full.onnx:logits' does not hold finite numbers",
        ),
        (
            lambda a: a.update({"head-means.onnx:features": a["head-means.onnx:features"] ^ 2}),
            "head-means.onnx: output 'features' differs from its golden value",
        ),
        (
            lambda a: a.pop("head-pixels.onnx:features"),
            "head-pixels.onnx: golden outputs [], has ['features']",
        ),
        (lambda a: a.update(input=a["input"][:, :2]), "edge-fp32.onnx: input 'input': shape must be"),
        (
            lambda a: a.update(input=a["input"].astype("f8")),
            "edge-fp32.onnx: input 'input': datatype must be",
        ),
        (lambda a: a.update(input=np.float32(1)), "edge-fp32.onnx: input 'input': shape must be"),
        (lambda a: a.update(input=np.array(["x"])), "golden.npz: 'input' does not hold finite numbers"),
        (lambda a: a.update(input=a["input"] * np.nan), "golden.npz: 'input' does not hold finite numbers"),
        (
            lambda a: a.update({key: value[:0] for key, value in a.items()}),
            "edge-fp32.onnx: output 'logits' is float32[0, 3], its golden value float32[0, 3]",
        ),
    ],
)
def test_golden_values_are_reproduced(
    make_bundle: MakeBundle, change: Callable[[dict[str, NDArray[Any]]], object], rule: str
) -> None:
    folder = make_bundle()
    regolden(folder, change)
    message = refusal(folder)
    assert message.removeprefix(f"{folder}/").startswith(rule)


def test_a_tail_without_its_heads_golden_features(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    regolden(folder, lambda arrays: arrays.pop("head-means.onnx:features"))
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match=r"tail-means\.onnx: input 'features' is missing"):
        engine(bundle, bundle.manifest.cuts[1].tail)


def test_an_early_exit_reproduces_its_golden_logits(make_bundle: MakeBundle) -> None:
    folder = make_bundle(exit_at="means")
    regolden(folder, lambda arrays: arrays.update({f"{EXIT}:logits": arrays[f"{EXIT}:logits"] * 1.05}))
    assert refusal(folder) == f"{EXIT}: output 'logits' differs from its golden value"


def test_an_early_exit_from_another_training_than_the_tail(make_bundle: MakeBundle) -> None:
    def coarser(graph: onnx.GraphProto) -> None:
        (step,) = (tensor for tensor in graph.initializer if tensor.name == "step")
        step.CopyFrom(constant("step", 2 / 255))

    folder = make_bundle(exit_at="means")
    change_exit(folder, coarser)
    assert refusal(folder) == f"{EXIT}: output 'features' differs from its golden value"


def test_tolerance_is_relative_to_the_largest_value(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    scale = float(np.abs(np.load(folder / GOLDEN)["full.onnx:logits"]).max())

    def shift(share: float) -> Callable[[dict[str, NDArray[Any]]], object]:
        def change(arrays: dict[str, NDArray[Any]]) -> None:
            arrays["full.onnx:logits"][0, 0] += np.float32(scale * share)

        return change

    regolden(folder, shift(0.009))
    load_all(folder)
    regolden(folder, shift(0.004))
    assert "differs from its golden value" in refusal(folder)


def test_features_may_be_a_step_off(make_bundle: MakeBundle) -> None:
    folder = make_bundle()

    def change(arrays: dict[str, NDArray[Any]]) -> None:
        # The tail's own golden logits follow from the changed features, within the tolerance or not.
        arrays["head-means.onnx:features"][0, 0] -= 1

    regolden(folder, change)
    bundle = load_bundle(folder)
    engine(bundle, bundle.manifest.cuts[1].head)
    regolden(folder, change)
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match="'features' differs"):
        engine(bundle, bundle.manifest.cuts[1].head)


@pytest.mark.parametrize("bias", [3e38, -3e38, np.nan])
def test_a_model_that_gives_no_finite_numbers(make_bundle: MakeBundle, bias: float) -> None:
    folder = make_bundle()
    gain = 3e38 if bias > 0 else -3e38
    replace_file(folder, "full.onnx", model_bytes(pool_and_classify(gain=gain, bias=[bias] * 3)))
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match=r"full\.onnx: output 'logits' differs"):
        engine(bundle, bundle.manifest.full)


def test_a_bundle_that_was_refused_can_be_repaired(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    good = (folder / "full.onnx").read_bytes()
    (folder / "full.onnx").write_bytes(b"")
    refusal(folder)
    (folder / "full.onnx").write_bytes(good)
    load_all(folder)


def test_manifest_is_plain_json(make_bundle: MakeBundle) -> None:
    folder = write_bundle(make_bundle())
    assert json.loads((folder / MANIFEST).read_text())["format"] == FORMAT
