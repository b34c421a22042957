"""`tandem verify`: each way to break a bundle is found and named, and data may contradict a certificate."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from inference_core.bundle import load_bundle
from tests import bundles
from tests.bundles import SURE, SURE_BUT_WRONG, UNSURE, UNSURE_AND_RIGHT, Color, edited, replace_file
from toolchain.certify import ESCALATION, GAP, METHOD
from toolchain.samples import Samples
from toolchain.verification import Check, contradiction, render, verify

SHIPPED = Path(__file__).resolve().parents[2] / "models"
RED, BLUE = 0, 2
RIGHT = {SURE: RED, UNSURE: BLUE, UNSURE_AND_RIGHT: BLUE, SURE_BUT_WRONG: BLUE}  # as the full model has it


def _samples(*counts: tuple[Color, int], labelled: bool = True) -> Samples:
    """So many samples of each colour, with the full model's answers as their classes."""
    colors = [color for color, count in counts for _ in range(count)]
    classes = np.array([RIGHT[color] for color in colors], np.int64)
    return Samples(bundles.pixels(*colors), classes if labelled else None, None)


def _certify(folder: Path, **changes: Any) -> None:
    """Give the bundle in `folder` a certificate: a gap of 2 % at 95 %."""
    manifest = load_bundle(folder).manifest
    certificate = {
        "bounds": GAP,
        "bound": 0.02,
        "confidence": 0.95,
        "samples": 1000,
        "method": METHOD,
        "digests": [manifest.edge_variant.sha256, manifest.full.sha256],
    }
    with edited(folder) as content:
        content["calibration"]["certificate"] = certificate | changes


def _failed(checks: Sequence[Check]) -> dict[str, str]:
    return {check.what: check.detail for check in checks if not check.passed}


def _found(checks: Sequence[Check], what: str) -> Check:
    (found,) = [check for check in checks if check.what == what]
    return found


# ---- files


@pytest.mark.parametrize("model", ["digits", "cifar10"])
def test_the_bundles_that_ship_pass(model: str) -> None:
    bundle = load_bundle(SHIPPED / model)
    checks = verify(bundle, None)
    assert _failed(checks) == {}
    files = {path.name for path in bundle.folder.iterdir()} - {"manifest.json", "report.json", "report.html"}
    assert {check.what for check in checks} == {*files, "certificate"}
    assert _found(checks, "certificate").detail == "of edge.int8.onnx and full.onnx"


def test_a_flipped_byte_is_found_in_every_file_and_the_others_still_pass(
    make_bundle: Callable[..., Path],
) -> None:
    folder = make_bundle()
    bundle = load_bundle(folder)
    for path in sorted(folder.glob("*.onnx")):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        failed = _failed(verify(bundle, None))
        assert list(failed) == [path.name]
        assert "SHA-256 is" in failed[path.name]
        path.write_bytes(data)
    assert _failed(verify(bundle, None)) == {}


def test_all_that_is_broken_is_listed(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    bundle = load_bundle(folder)
    (folder / "head-means.onnx").unlink()
    (folder / "tail-means.onnx").write_bytes(b"short")
    (folder / "full.onnx").rename(folder / "elsewhere")
    (folder / "full.onnx").symlink_to("elsewhere")
    failed = _failed(verify(bundle, _samples((SURE, 1))))
    assert failed.keys() == {"head-means.onnx", "tail-means.onnx", "full.onnx", "data"}
    assert "No such file" in failed["head-means.onnx"]
    assert "5 bytes, the manifest says" in failed["tail-means.onnx"]
    assert "symbolic link" in failed["full.onnx"]
    assert failed["data"] == "not looked at: the edge model or the full one is refused"


def test_a_broken_golden_file_leaves_no_model_verified(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    bundle = load_bundle(folder)
    path = folder / bundles.GOLDEN
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    failed = _failed(verify(bundle, None))
    assert len(failed) == 8
    assert all("golden.npz: SHA-256" in detail for detail in failed.values())


def test_a_model_that_answers_otherwise_fails_although_its_digest_is_right(
    make_bundle: Callable[..., Path],
) -> None:
    folder = make_bundle()
    replace_file(folder, "full.onnx", bundles.model_bytes(bundles.pool_and_classify(bias=(9.0, 0.0, 0.0))))
    failed = _failed(verify(load_bundle(folder), None))
    assert failed == {"full.onnx": "full.onnx: output 'logits' differs from its golden value"}


def test_a_file_against_the_rules_of_trust_fails(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    replace_file(folder, "edge-int8.onnx", b"this is no model")
    failed = _failed(verify(load_bundle(folder), None))
    assert list(failed) == ["edge-int8.onnx"]
    assert "not an ONNX file" in failed["edge-int8.onnx"]


def test_the_same_file_named_twice_is_looked_at_once(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    with edited(folder) as content:
        content["full"] = {**content["variants"][1], "name": "full"}
    checks = verify(load_bundle(folder), None)
    assert [check.what for check in checks].count("edge-int8.onnx") == 1
    with edited(folder) as content:
        content["full"]["sha256"] = "0" * 64
    checks = verify(load_bundle(folder), None)
    assert [check.passed for check in checks if check.what == "edge-int8.onnx"] == [True, False]


def test_stray_files_are_remarked_on_but_reports_are_not(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    for name in ("report.json", "report.html"):
        (folder / name).write_text("{}")
    assert "other files" not in {check.what for check in verify(load_bundle(folder), None)}
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt", "f.txt"):
        (folder / name).write_text("")
    (folder / "folder").mkdir()
    remark = _found(verify(load_bundle(folder), None), "other files")
    assert remark.passed
    assert (
        remark.detail == "not named by the manifest and ignored: a.txt, b.txt, c.txt, d.txt, e.txt and 2 more"
    )


# ---- the certificate


def test_a_certificate_is_of_the_files_that_are_served(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    _certify(folder)
    check = _found(verify(load_bundle(folder), None), "certificate")
    assert check == Check("certificate", True, "of edge-int8.onnx and full.onnx")


@pytest.mark.parametrize(
    ("digests", "why"),
    [
        (("full", "full"), "of another edge model than edge-int8.onnx"),
        (("fp32", "full"), "of another edge model than edge-int8.onnx"),
        (("int8", "int8"), "of another full model than full.onnx"),
        (("int8",), "names 1 files"),
        (("int8", "full", "full"), "names 3 files"),
        ((), "names 0 files"),
    ],
)
def test_a_certificate_of_other_files_fails(
    make_bundle: Callable[..., Path], digests: Sequence[str], why: str
) -> None:
    folder = make_bundle()
    manifest = load_bundle(folder).manifest
    known = {file.name: file.sha256 for file in (*manifest.variants, manifest.full)}
    _certify(folder, digests=[known[name] for name in digests])
    failed = _failed(verify(load_bundle(folder), None))
    assert list(failed) == ["certificate"]
    assert why in failed["certificate"]


# ---- data


@pytest.fixture
def certified(make_bundle: Callable[..., Path]) -> Path:
    """A bundle with a certificate: a gap of at most 2 % at 95 %."""
    folder = make_bundle()
    _certify(folder)
    return folder


def test_data_that_fits_the_certificate_does_not_contradict_it(certified: Path) -> None:
    samples = _samples((SURE, 60), (UNSURE, 20), (UNSURE_AND_RIGHT, 16), (SURE_BUT_WRONG, 4))
    checks = verify(load_bundle(certified), samples)
    assert _failed(checks) == {}
    assert _found(checks, "data").detail == (
        "100 samples, 36.0 % escalated; the pair is right on 96.0 %, the edge alone on 76.0 %, the full "
        "model alone on 100 %"
    )
    assert _found(checks, "certificate on the data").detail == (
        "not contradicted: 4 of 100 samples answered wrongly by the edge and rightly by the full model, "
        "certified is at most 2 %; p = 0.14"
    )


def test_data_with_too_many_losses_contradicts_it(certified: Path) -> None:
    checks = verify(load_bundle(certified), _samples((SURE, 94), (SURE_BUT_WRONG, 6)))
    assert list(_failed(checks)) == ["certificate on the data"]
    assert "contradicted: 6 of 100 samples" in _failed(checks)["certificate on the data"]


def test_the_verdict_turns_where_the_exact_test_does(certified: Path) -> None:
    bundle = load_bundle(certified)
    for lost in range(4, 7):
        p = binomtest(lost, 100, 0.02, alternative="greater").pvalue
        checks = verify(bundle, _samples((SURE, 100 - lost), (SURE_BUT_WRONG, lost)))
        assert _found(checks, "certificate on the data").passed == (p >= 0.05)


def test_errors_that_the_full_model_makes_too_are_no_losses(certified: Path) -> None:
    samples = Samples(bundles.pixels(*[SURE] * 50), np.full(50, BLUE), None)
    checks = verify(load_bundle(certified), samples)
    assert "not contradicted: 0 of 50" in _found(checks, "certificate on the data").detail
    # But a full model that is never right any more is a sign of other data.
    assert _failed(checks).keys() == {"drift of accuracy"}


def test_more_escalations_than_were_certified_are_a_drift(certified: Path) -> None:
    with edited(certified) as content:
        content["calibration"]["certificate"]["escalated"] = 0.1
    bundle = load_bundle(certified)
    unsure = Samples(bundles.pixels(*[UNSURE] * 100), None, None)
    drift = _found(verify(bundle, unsure), "drift of escalation")
    assert not drift.passed
    assert "is not like that of the certificate: escalated 100 %" in drift.detail
    few = Samples(bundles.pixels(UNSURE), None, None)  # one sample says little
    assert _found(verify(bundle, few), "drift of escalation").passed


def test_a_certificate_by_labels_is_not_refuted_without_labels(certified: Path) -> None:
    checks = verify(load_bundle(certified), _samples((SURE, 50), (SURE_BUT_WRONG, 50), labelled=False))
    check = _found(checks, "certificate on the data")
    assert check.passed
    assert "not tested, the data has no labels: at most 50 of 100" in check.detail
    assert "agrees with the full model on 50.0 %" in _found(checks, "data").detail
    checks = verify(load_bundle(certified), _samples((SURE, 100), labelled=False))
    assert "not contradicted" in _found(checks, "certificate on the data").detail


def test_a_certificate_by_the_full_model_is_tested_by_its_answers(certified: Path) -> None:
    with edited(certified) as content:
        content["reference"] = "full"
    bundle = load_bundle(certified)
    wrong = Samples(bundles.pixels(*[SURE] * 50, *[SURE_BUT_WRONG] * 50), np.full(100, RED), None)
    assert list(_failed(verify(bundle, wrong))) == ["certificate on the data"]
    without = _samples((SURE, 50), (SURE_BUT_WRONG, 50), labelled=False)
    assert list(_failed(verify(bundle, without))) == ["certificate on the data"]


@pytest.mark.parametrize(("escalated", "passed"), [(30, True), (36, True), (45, False)])
def test_a_budget_is_tested_by_the_share_escalated(certified: Path, escalated: int, passed: bool) -> None:
    _certify(certified, bounds=ESCALATION, bound=0.3)
    samples = _samples((SURE, 100 - escalated), (UNSURE, escalated), labelled=False)
    check = _found(verify(load_bundle(certified), samples), "certificate on the data")
    assert check.passed == passed
    assert f"{escalated} of 100 samples escalated, certified is at most 30 %" in check.detail


def test_a_bound_on_something_else_is_not_tested(certified: Path) -> None:
    _certify(certified, bounds="share of cats")
    check = _found(verify(load_bundle(certified), _samples((SURE_BUT_WRONG, 9))), "certificate on the data")
    assert check.passed
    assert check.detail == "not tested, it bounds what is unknown here: share of cats"


def test_data_without_a_certificate_is_only_measured(make_bundle: Callable[..., Path]) -> None:
    checks = verify(load_bundle(make_bundle()), _samples((SURE, 3), (SURE_BUT_WRONG, 1)))
    assert _failed(checks) == {}
    assert checks[-1].what == "data"


def test_data_that_the_models_cannot_take_is_a_failure(certified: Path) -> None:
    bundle = load_bundle(certified)
    wide = Samples(np.zeros((3, 3, 9, 9), np.float32), None, None)
    assert "shape must be" in _failed(verify(bundle, wide))["data"]
    classes = Samples(bundles.pixels(SURE, SURE), np.array([0, 9]), None)
    assert "classes must be whole numbers from 0 to 2" in _failed(verify(bundle, classes))["data"]
    none = Samples(np.zeros((0, 3, 8, 8), np.float32), None, None)
    assert _failed(verify(bundle, none)) == {"data": "there are no samples"}


@pytest.mark.parametrize(("events", "samples", "bound"), [(0, 10, 0.1), (3, 50, 0.02), (50, 50, 0.5)])
def test_the_p_value_is_that_of_the_exact_binomial_test(events: int, samples: int, bound: float) -> None:
    expected = binomtest(events, samples, bound, alternative="greater").pvalue
    assert contradiction(events, samples, bound) == pytest.approx(expected)


def test_bounds_at_the_ends_of_the_range() -> None:
    assert contradiction(0, 10, 0.0) == 1
    assert contradiction(1, 10, 0.0) == 0
    assert contradiction(10, 10, 1.0) == 1


# ---- the terminal


def test_the_table_names_failures_and_shows_text_as_it_is() -> None:
    out = io.StringIO()
    checks = [Check("a.onnx", True, "fine"), Check("[b]", False, "\x1b[2J [red]")]
    Console(file=out, width=80, color_system=None).print(render(checks))
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["ok", "a.onnx", "fine"],
        ["FAILED", "[b]", "\\x1b[2J", "[red]"],
    ]
