"""Measuring a bundle: the figures are what its files really do."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from inference_core.bundle import load_bundle
from inference_core.confidence import Scorer
from inference_core.engine import Engine
from inference_core.errors import BundleError, InvalidInput, ModelError
from inference_core.manifest import Calibration
from tests import bundles
from tests.toolchain import networks
from toolchain.evaluate import (
    accuracy,
    agreement,
    cascade,
    evaluate_bundle,
    latencies,
    render,
    run,
    run_model,
)
from toolchain.images import LabelledImage

ALL_KINDS = (bundles.SURE, bundles.UNSURE, bundles.UNSURE_AND_RIGHT, bundles.SURE_BUT_WRONG)


def _pictures() -> list[LabelledImage]:
    """Two of each kind of colour, labelled with what the full model says."""
    labels = ("red", "blue", "blue", "blue")
    kinds = list(zip(ALL_KINDS, labels, strict=True)) * 2
    return [LabelledImage(f"{at}.png", label, bundles.picture(c)) for at, (c, label) in enumerate(kinds)]


def test_the_figures_of_a_bundle_whose_answers_are_known(make_bundle: Callable[..., Path]) -> None:
    figures = evaluate_bundle(load_bundle(make_bundle()), _pictures())
    assert figures.samples == 8
    assert figures.full.accuracy == 1.0
    assert figures.edge_figures.accuracy == 0.5  # sure, and unsure and right
    assert figures.escalated == 0.5  # the two unsure kinds
    assert figures.cascade_accuracy == 0.75  # all but sure but wrong
    assert {name: cut.agreement for name, cut in figures.cuts.items()} == {"pixels": 1.0, "means": 1.0}
    assert {name: cut.bytes for name, cut in figures.cuts.items()} == {"pixels": 192, "means": 3}
    assert figures.image_bytes == sum(len(image.data) for image in _pictures()) / 8
    assert figures.speedup == figures.full.ms / figures.edge_figures.ms


def test_sizes_are_those_of_the_files(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    figures = evaluate_bundle(bundle, _pictures())
    assert figures.full.bytes == (bundle.folder / bundle.manifest.full.file).stat().st_size
    edge = bundle.folder / bundle.manifest.edge_variant.file
    assert figures.edge_figures.bytes == edge.stat().st_size
    assert min(figures.full.ms, *(cut.head_ms for cut in figures.cuts.values())) > 0


def test_a_changed_file_is_not_measured(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    path = bundle.folder / bundle.manifest.full.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="SHA-256"):
        evaluate_bundle(bundle, _pictures())


def test_images_that_the_bundle_does_not_know_are_refused(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle())
    with pytest.raises(InvalidInput, match="label 'cat' is not one of red, green, blue"):
        evaluate_bundle(bundle, [LabelledImage("0.png", "cat", bundles.picture(bundles.SURE))])
    with pytest.raises(InvalidInput, match="no images"):
        evaluate_bundle(bundle, [])


def test_the_table_shows_every_model_and_cut(make_bundle: Callable[..., Path]) -> None:
    figures = evaluate_bundle(load_bundle(make_bundle()), _pictures())
    out = io.StringIO()
    Console(file=out, width=120).print(render(figures))
    text = out.getvalue()
    for part in ("full model", "served", "50.0% escalated", "75.00%", "cut pixels", "cut means", "8 images"):
        assert part in text


def test_the_json_form_holds_plain_values_only(make_bundle: Callable[..., Path]) -> None:
    figures = evaluate_bundle(load_bundle(make_bundle()), _pictures()).as_json()
    assert figures["cuts"]["means"]["bytes"] == 3
    assert isinstance(figures["speedup"], float)


def test_accuracy_and_agreement_go_by_the_largest_logit() -> None:
    logits = np.array([[1, 2], [3, 1], [0, 5], [9, 1]], np.float32)
    assert accuracy(logits, np.array([1, 0, 1, 1])) == 0.75
    assert agreement(logits, -logits) == 0.0
    assert agreement(logits, 2 * logits) == 1.0


def test_the_threshold_itself_is_trusted() -> None:
    edge = np.zeros((2, 2), np.float32)  # confidence 0.5
    full = np.array([[0, 1], [0, 1]], np.float32)
    for threshold, expected in ((0.5, [0, 0]), (0.5001, [1, 1])):
        rule = Calibration(scorer=Scorer.MAX_PROBABILITY, temperature=1.0, threshold=threshold, samples=1)
        answers, escalated = cascade(edge, full, rule)
        assert answers.tolist() == expected
        assert escalated.tolist() == [bool(at) for at in expected]


def test_chunks_are_put_together_in_order() -> None:
    inputs = networks.inputs(250)
    engine = Engine(networks.full_network(), name="full")
    together = run(engine, {"input": inputs})["logits"]
    assert together.shape == (250, 3)
    one = np.concatenate([engine.run({"input": row[None]})["logits"] for row in inputs])
    np.testing.assert_allclose(together, one, atol=1e-5)


def test_a_model_with_more_outputs_is_not_run_as_if_it_had_one() -> None:
    import onnx

    model = onnx.load_from_string(networks.full_network())
    model.graph.output.append(onnx.helper.make_tensor_value_info("inner", 1, ["batch", 12, 8, 8]))
    with pytest.raises(ModelError, match="1 inputs and 2 outputs"):
        run_model(model.SerializeToString(), networks.inputs(1))


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = latencies({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert [name for name, _ in itertools.groupby(order)][:4] == ["a", "b", "a", "b"]
    assert order.count("a") == order.count("b") > 100
    assert times.keys() == {"a", "b"}
