"""From one network or two and data to a bundle, all stages for real."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from inference_core.bundle import Bundle, load_bundle
from inference_core.confidence import score, softmax
from inference_core.errors import BundleError, InvalidInput, ModelError
from inference_core.manifest import Manifest
from inference_core.trust import sha256
from tests.toolchain import families, networks
from toolchain.calibrate import losses
from toolchain.certify import ESCALATION, GAP
from toolchain.graph import check
from toolchain.pair import EXIT
from toolchain.parts import partition
from toolchain.prepare import Prepared, prepare
from toolchain.recipe import Exits, Recipe, Targets
from toolchain.runs import CPU, run, run_model
from toolchain.samples import Samples

SENSOR = next(family for family in families.FAMILIES if family.name == "conv1d")
MEASURED = ("ms", "memory_bytes", "one_thread", "two_threads", "latency_ms", "head_ms", "tail_ms")


@cache
def _networks() -> Recipe:
    """Two networks for images with labels, which the full one is always right about."""
    x = networks.inputs(500, seed=1)
    full = check(networks.full_network(), "full.onnx")
    classes = run_model(full.data, x).argmax(axis=1)
    return Recipe(
        model="shapes",
        version="7",
        full=full,
        edge=check(networks.edge_network(), "edge.onnx"),
        samples=Samples(x, classes, 123.5, skipped=("bad.png: no image",)),
        labels=networks.LABELS,
        preprocess=networks.PREPROCESS,
        cuts={"early": ("inner",)},
        targets=Targets(gap=0.03, max_loss=0.05),
        half=True,
        seed=5,
    )


@cache
def _sensor() -> Recipe:
    """One network for windows of a sensor, without labels, that is to exit early."""
    return Recipe(
        model="sensor",
        version="1",
        full=check(SENSOR.build(), "sensor.onnx"),
        samples=Samples(SENSOR.inputs(400, seed=5), None, None),
        labels=tuple("abcdefghij"),
        targets=Targets(gap=0.12, max_loss=0.05),
        exits=Exits.ALWAYS,
    )


@cache
def _uneven() -> Recipe:
    """The sensor's network with one channel of `gained`, and its first weights there, of another size.

    What stores all channels in steps of the same size loses all others.
    """
    model = onnx.load_from_string(SENSOR.build())
    graph = model.graph
    gain = np.ones((1, families.WINDOW[0], 1), np.float32)
    gain[0, 0] = 3000
    taken = graph.input[0].name
    first = next(node for node in graph.node if taken in node.input)
    weights = next(tensor for tensor in graph.initializer if tensor.name == first.input[1])
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) / gain, weights.name))
    graph.initializer.append(numpy_helper.from_array(gain, "gain"))
    first.input[0] = "gained"
    graph.node.insert(0, helper.make_node("Mul", [taken, "gain"], ["gained"]))
    return replace(
        _sensor(),
        full=check(model.SerializeToString(), "uneven.onnx"),
        samples=Samples(*SENSOR.labelled(200, seed=7), None),
        test=Samples(*SENSOR.labelled(300, seed=8), None),
        exits=Exits.NEVER,
        cuts={},
    )


@pytest.fixture(scope="module")
def stages() -> list[str]:
    """What was said while `pair` was made."""
    return []


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, stages: list[str]) -> Prepared:
    """A bundle of two networks."""
    folder = tmp_path_factory.mktemp("pair")
    prepared = prepare(_networks(), folder / "shapes", say=stages.append)
    assert [path.name for path in folder.iterdir()] == ["shapes"]
    return prepared


@pytest.fixture(scope="module")
def exiting(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A bundle whose edge exits early."""
    return prepare(_sensor(), tmp_path_factory.mktemp("exiting") / "sensor")


def _logits(bundle: Bundle, x: families.Inputs, full: bool) -> NDArray[np.float32]:
    manifest = bundle.manifest
    file = manifest.full if full else manifest.edge_variant
    engine = bundle.engine(file, threads=1, providers=CPU)
    return run(engine, {manifest.input.name: x})[manifest.output.name]


# ---- what comes out


def test_a_bundle_of_two_networks_is_as_the_recipe_says(pair: Prepared) -> None:
    manifest = load_bundle(pair.bundle.folder).manifest
    assert (manifest.model, manifest.version, manifest.reference) == ("shapes", "7", "labels")
    assert (manifest.labels, manifest.preprocess) == (networks.LABELS, networks.PREPROCESS)
    assert manifest.full.precision == "fp16"
    assert manifest.full.accuracy is not None
    assert manifest.full.accuracy > 0.98
    assert [cut.name for cut in manifest.cuts] == ["early"]
    assert manifest.cuts[0].boundary[0].shape == (networks.CHANNELS, 8, 8)
    names = [variant.name for variant in manifest.variants]
    assert {"int8", "fp16"} <= set(names)
    assert "fp32" not in names or manifest.edge == "fp32"
    assert all(variant.cut is None for variant in manifest.variants)


def test_every_stage_is_said_in_one_line(pair: Prepared, stages: list[str]) -> None:
    heads = list(dict.fromkeys(line.split(":")[0] for line in stages))
    assert heads == ["checked", "parted", "quantized", "cut", "chosen", "certified"]
    assert not [line for line in stages if "\n" in line]
    assert "parted: 150 to calibrate, 250 to certify, 100 to test" in stages[1]


@pytest.mark.parametrize("made", ["pair", "exiting"])
def test_the_certificate_is_of_the_files_and_of_the_certification_part(
    made: str, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(made).bundle
    recipe = _networks() if made == "pair" else _sensor()
    part = partition(recipe.samples, recipe.seed).certification
    rule = bundle.manifest.calibration
    certificate = rule.certificate
    assert certificate is not None
    files = [bundle.manifest.edge_variant, bundle.manifest.full]
    assert certificate.digests == tuple(sha256((bundle.folder / file.file).read_bytes()) for file in files)
    assert (certificate.bounds, certificate.bound) == (GAP, recipe.targets.gap)
    assert (certificate.samples, certificate.threshold) == (len(part), rule.threshold)

    edge, full = _logits(bundle, part.inputs, full=False), _logits(bundle, part.inputs, full=True)
    classes = full.argmax(axis=1) if part.classes is None else part.classes
    escalated = score(softmax(edge, rule.temperature), rule.scorer) < rule.threshold
    assert certificate.escalated == pytest.approx(escalated.mean())
    assert certificate.observed == pytest.approx((losses(edge, full, classes) & ~escalated).mean())
    assert certificate.observed < certificate.bound


def test_the_manifest_has_the_figures_of_the_test_part(pair: Prepared) -> None:
    bundle, recipe = pair.bundle, _networks()
    part = partition(recipe.samples, recipe.seed).test
    edge, full = _logits(bundle, part.inputs, full=False), _logits(bundle, part.inputs, full=True)
    manifest = bundle.manifest
    assert manifest.edge_variant.accuracy == pytest.approx((edge.argmax(axis=1) == part.classes).mean())
    assert manifest.full.accuracy == pytest.approx((full.argmax(axis=1) == part.classes).mean())
    cut = manifest.cuts[0]
    head, tail = (bundle.engine(half, threads=1, providers=CPU) for half in (cut.head, cut.tail))
    given = run(tail, run(head, {"input": part.inputs}))["logits"]
    assert cut.agreement == pytest.approx((given.argmax(axis=1) == full.argmax(axis=1)).mean())
    assert min(cut.head_ms or 0, cut.tail_ms or 0) > 0


def test_an_exit_gives_the_features_of_its_cut_beside_the_logits(exiting: Prepared) -> None:
    bundle, manifest = exiting.bundle, exiting.bundle.manifest
    variant = manifest.edge_variant
    assert (manifest.edge, manifest.reference, len(manifest.variants)) == (EXIT, "full", 1)
    cut = manifest.cut(variant.cut or "")
    assert cut is not None
    x = {manifest.input.name: SENSOR.inputs(20, seed=9)}
    given = bundle.engine(variant, threads=1, providers=CPU).run(x)
    features = bundle.engine(cut.head, threads=1, providers=CPU).run(x)
    assert given.keys() == {manifest.output.name, *features}
    for name, values in features.items():
        steps = np.abs(given[name].astype(int) - values.astype(int))
        assert steps.max() <= manifest.golden.feature_steps


def _report(bundle: Bundle) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle.folder / "report.json").read_text())
    return content


def test_the_report_has_all_figures(pair: Prepared, exiting: Prepared) -> None:
    report = _report(pair.bundle)
    assert report == json.loads(json.dumps(pair.report.as_json()))
    assert report["data"] == {
        "calibration": 150,
        "certification": 250,
        "test": 100,
        "skipped": ["bad.png: no image"],
    }
    assert report["made"]["seed"] == 5
    assert report["made"]["targets"]["gap"] == 0.03
    assert report["test"]["image_bytes"] == 123.5
    assert report["test"]["input_bytes"] == 256
    rows = {row["name"]: row for row in report["forms"]}
    assert {"full", "fp32", "fp16", "int8"} <= rows.keys()
    assert [row["name"] for row in report["forms"] if row["verdict"] == "served"] == [
        pair.bundle.manifest.edge
    ]
    assert (rows["full"]["model"], rows["int8"]["model"]) == ("full", "edge")
    for row in rows.values():
        assert 0 < row["one_thread"]["p50"] <= row["one_thread"]["p99"]
        assert row["two_threads"]["p50"] > 0
        assert 1 << 20 < row["memory_bytes"] < 1 << 32
        assert row["bytes"] > 0
    cuts = {row["name"]: row for row in report["cuts"]}
    assert cuts["early"]["kept"]
    assert len(cuts) > 1
    assert report["curve"]["rows"][0]["threshold"] == 0
    assert report["certificate"]["samples"] == 250
    assert report["exits"] == []

    report = _report(exiting.bundle)
    assert report["test"]["image_bytes"] is None
    assert report["reference"] == "full"
    assert [row["chosen"] for row in report["exits"]].count(True) == 1
    forms = {row["name"]: row["model"] for row in report["forms"]}
    assert (forms["int8"], forms[EXIT]) == ("full", "edge")
    page = (exiting.bundle.folder / "report.html").read_text()
    assert page.strip().lower().startswith("<!doctype html>")


def test_the_pair_of_the_report_adds_up(pair: Prepared) -> None:
    test = pair.report.test
    assert test.gap == pytest.approx(test.full_accuracy - test.accuracy)
    assert test.gap <= test.risk
    assert test.edge_accuracy <= test.full_accuracy
    assert 0 <= test.escalated < 1


# ---- the same again


def _steady(content: Any) -> Any:
    """`content` without what is timed or depends on how memory was given out."""
    if isinstance(content, dict):
        return {key: _steady(value) for key, value in content.items() if key not in MEASURED}
    return [_steady(value) for value in content] if isinstance(content, list) else content


def _content(folder: Path) -> dict[str, object]:
    files: dict[str, object] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".onnx", ".npz")
    }
    for name in ("manifest.json", "report.json"):
        files[name] = _steady(json.loads((folder / name).read_text()))
    return files


def test_the_same_recipe_gives_the_same_bundle_and_another_seed_other_parts(
    exiting: Prepared, tmp_path: Path
) -> None:
    again = prepare(_sensor(), tmp_path / "again").bundle
    first, second = _content(exiting.bundle.folder), _content(again.folder)
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == set()
    assert "one_thread" in (again.folder / "report.json").read_text()  # so that something was left out

    other = prepare(replace(_sensor(), seed=1), tmp_path / "other").bundle
    assert _content(other.folder)[f"edge.{EXIT}.onnx"] != first[f"edge.{EXIT}.onnx"]
    assert _report(other)["made"]["seed"] == 1


# ---- choices


def test_a_budget_bounds_what_is_escalated_instead(tmp_path: Path) -> None:
    samples = Samples(*SENSOR.labelled(400, seed=5), None)
    recipe = replace(_sensor(), samples=samples, targets=Targets(gap=0.12, budget=0.5), half=True)
    prepared = prepare(recipe, tmp_path / "sensor")
    certificate = prepared.bundle.manifest.calibration.certificate
    assert certificate is not None
    assert (certificate.bounds, certificate.bound) == (ESCALATION, 0.5)
    assert 0 < (certificate.escalated or 0) < 0.5
    assert prepared.bundle.manifest.full.precision == "fp16"


def test_what_loses_too_much_is_refused_and_the_report_says_why(tmp_path: Path) -> None:
    prepared = prepare(replace(_uneven(), targets=Targets(gap=0.1)), tmp_path / "sensor")
    refused = {row.name: row for row in prepared.report.forms if row.verdict == "refused"}
    assert "int8" in refused
    assert "loses" in refused["int8"].reason
    assert "int8" not in [variant.name for variant in prepared.bundle.manifest.variants]
    assert prepared.bundle.manifest.edge not in refused
    assert prepared.report.data["test"] == 300
    assert prepared.report.exits == ()
    assert prepared.bundle.manifest.cuts == ()


# ---- refusals


def test_a_cut_that_changes_answers_is_refused(tmp_path: Path) -> None:
    recipe = replace(_uneven(), targets=Targets(gap=0.1), cuts={"early": ("gained",)})
    with pytest.raises(ModelError, match=r"cut 'early' agrees with the full model on \d+\.\d+% of .* 99.00%"):
        prepare(recipe, tmp_path / "sensor")
    assert not any(tmp_path.iterdir())


def test_an_exit_that_answers_too_little_is_refused(tmp_path: Path) -> None:
    recipe = replace(_sensor(), targets=Targets(gap=0.02, max_loss=0.05))
    with pytest.raises(
        ModelError, match=r"no early exit answers 10% .* a gap of 2\.00%: cut\S+ answers \d+%"
    ):
        prepare(recipe, tmp_path / "sensor")
    with pytest.raises(
        ModelError, match="there is no cut to exit at within the first 80% of the work; name an earlier"
    ):
        prepare(replace(_sensor(), cuts={}), tmp_path / "sensor")
    assert not any(tmp_path.iterdir())


QUICK: list[tuple[Callable[[Recipe], Recipe], type[Exception], str]] = [
    (lambda r: replace(r, targets=Targets(gap=0.001)), InvalidInput, "takes at least 2995 certification"),
    (lambda r: replace(r, targets=Targets(budget=0.001)), InvalidInput, "a budget of 0.001 cannot be"),
    (lambda r: replace(r, cuts={"a": ("nowhere",)}), ModelError, "cannot be cut at nowhere, only at: "),
    (lambda r: replace(r, samples=r.samples.take(np.arange(9))), InvalidInput, "there are 9 samples"),
    (lambda r: replace(r, seed=-1), InvalidInput, "--seed must be at least 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), QUICK)
def test_what_cannot_come_out_is_refused_before_the_work(
    tmp_path: Path, change: Callable[[Recipe], Recipe], error: type[Exception], message: str
) -> None:
    stages: list[str] = []
    with pytest.raises(error, match=message):
        prepare(change(_networks()), tmp_path / "shapes", say=stages.append)
    assert len(stages) == 1  # the model was checked
    assert not any(tmp_path.iterdir())


def test_what_exists_is_replaced_only_on_request(pair: Prepared) -> None:
    stages: list[str] = []
    with pytest.raises(BundleError, match="exists already"):
        prepare(_networks(), pair.bundle.folder, say=stages.append)
    assert stages == []
    assert isinstance(load_bundle(pair.bundle.folder).manifest, Manifest)
