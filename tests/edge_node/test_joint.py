"""Every mode with everything that a cloud can do, and what is counted of it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_node.model_slot import load_models
from edge_node.outcome import EdgeAnswer
from edge_node.policy import Mode, Payload, Source
from edge_node.preferences import Wishes
from edge_node.request import Ask
from edge_node.routes import Kind, Way
from edge_node.settings import Settings
from inference_core.bundle import load_bundle
from inference_core.errors import (
    BreakerOpen,
    CloudRefused,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
    InvalidInput,
    ModelError,
    ModelNotFound,
    Overloaded,
    TooLarge,
)
from tests.bundles import (
    SURE,
    SURE_BUT_WRONG,
    UNSURE,
    UNSURE_AND_RIGHT,
    Color,
    picture,
    pixels,
    write_bundle,
)
from tests.edge_node.node import BYTES_DOWN, CloudSimulator, Node, failing_bundle, node, noise

pytestmark = pytest.mark.anyio

FAILURES: dict[str, Callable[[], CloudUnavailable]] = {
    "cloud_unreachable": lambda: CloudUnreachable("gone"),
    "deadline": lambda: DeadlineExceeded("late"),
    "breaker_open": lambda: BreakerOpen("left alone"),
    **{reason: lambda r=reason: CloudRefused("no", r) for reason in sorted(CloudRefused.REASONS)},  # type: ignore[misc]
}


def counted(edge: Node) -> dict[tuple[str, ...], float]:
    """Answered samples by model, reason and source."""
    return edge.series("tandem_requests_total")


def is_unsure_of_red(answer: EdgeAnswer | None) -> bool:
    """Whether this is what the edge model says of `UNSURE`."""
    assert answer is not None
    return (answer.label, answer.index, round(answer.confidence, 2)) == ("red", 0, 0.37)


@pytest.mark.parametrize(
    ("mode", "color", "source", "reason", "label", "confidence"),
    [
        ("edge", SURE, "edge", "mode", "red", 1.0),
        ("edge", UNSURE, "edge", "mode", "red", 0.37),
        ("cascade", SURE, "edge", "confident", "red", 1.0),
        ("cascade", SURE_BUT_WRONG, "edge", "confident", "red", 0.96),
        ("cascade", UNSURE, "cloud", "low_confidence", "blue", 0.99),
        ("cascade", UNSURE_AND_RIGHT, "cloud", "low_confidence", "blue", 0.99),
        ("cloud", SURE, "cloud", "mode", "red", 1.0),
        ("cloud", UNSURE, "cloud", "mode", "blue", 0.99),
        ("split", SURE, "cloud", "mode", "red", 1.0),
        ("split", UNSURE, "cloud", "mode", "blue", 0.99),
    ],
)
async def test_who_answers_and_why(
    edge: Node,
    cloud: CloudSimulator,
    mode: str,
    color: Color,
    source: str,
    reason: str,
    label: str,
    confidence: float,
) -> None:
    outcome = await edge.ask(picture(color), mode=mode)
    assert (outcome.source, outcome.reason, outcome.degraded, outcome.mode) == (source, reason, False, mode)
    assert outcome.prediction.label == label
    assert outcome.prediction.confidence == pytest.approx(confidence, abs=0.01)
    assert len(cloud.asked) == (source == "cloud")
    assert counted(edge) == {("colors", reason, source): 1}


async def test_edge_answer_and_threshold_are_told(edge: Node, colors: Path) -> None:
    outcome = await edge.ask(picture(UNSURE), mode="edge")
    assert is_unsure_of_red(outcome.edge)
    assert outcome.threshold == 0.8
    bundle = load_bundle(colors)
    assert (outcome.model.name, outcome.model.version, outcome.model.digest) == ("colors", "1", bundle.digest)
    assert [item.label for item in outcome.prediction.top_k] == ["red", "green", "blue"]
    assert sum(item.confidence for item in outcome.prediction.top_k) == pytest.approx(1.0)
    assert (outcome.bytes_up, outcome.bytes_down, outcome.cut) == (0, 0, None)


async def test_edge_answer_stands_beside_the_clouds(edge: Node) -> None:
    outcome = await edge.ask(picture(UNSURE))
    assert is_unsure_of_red(outcome.edge)
    assert outcome.prediction.label == "blue"
    assert (await edge.ask(picture(UNSURE), mode="cloud")).edge is None


@pytest.mark.parametrize(
    ("mode", "stages"),
    [
        ("edge", {"preprocess", "edge", "total"}),
        ("cascade", {"preprocess", "edge", "cloud", "total"}),
        ("cloud", {"preprocess", "cloud", "total"}),
        ("split", {"preprocess", "head", "cloud", "total"}),
    ],
)
async def test_stages_are_timed(edge: Node, mode: str, stages: set[str]) -> None:
    outcome = await edge.ask(picture(UNSURE), mode=mode)
    assert outcome.timings_ms.keys() == stages
    parts = sum(ms for stage, ms in outcome.timings_ms.items() if stage != "total")
    assert 0 < parts <= outcome.timings_ms["total"] + 0.01
    for stage in stages - {"total"}:
        assert edge.value("tandem_stage_duration_seconds_count", model="colors", stage=stage) == 1
    source = "edge" if mode == "edge" else "cloud"
    assert edge.value("tandem_request_duration_seconds_count", model="colors", source=source) == 1


async def test_stages_of_the_cloud_are_passed_on(edge: Node, cloud: CloudSimulator) -> None:
    cloud.parameters = {
        "tandem_decode_ms": 1.5,
        "tandem_queue_ms": 2.5,
        "tandem_infer_ms": "nonsense",
        "other": 3.5,
    }
    timings = (await edge.ask(picture(UNSURE), mode="cloud")).timings_ms
    assert (timings["cloud_decode"], timings["cloud_queue"]) == (1.5, 2.5)
    assert "cloud_infer" not in timings


@pytest.mark.parametrize("mode", ["cascade", "cloud", "split"])
@pytest.mark.parametrize("reason", FAILURES)
async def test_edge_answers_when_the_cloud_does_not(
    edge: Node, cloud: CloudSimulator, mode: str, reason: str
) -> None:
    failure = FAILURES[reason]()
    failure.bytes_up = 77
    cloud.failure = failure
    outcome = await edge.ask(picture(UNSURE), mode=mode)
    assert (outcome.source, outcome.reason, outcome.degraded) == (Source.EDGE_FALLBACK, reason, True)
    assert outcome.prediction.label == "red"
    assert outcome.edge is not None
    assert outcome.edge.label == "red"
    assert "edge" in outcome.timings_ms
    assert (outcome.bytes_up, outcome.bytes_down) == (77, 0)
    assert counted(edge) == {("colors", reason, "edge_fallback"): 1}
    assert edge.series("tandem_fallbacks_total") == {("colors", reason): 1}
    assert edge.value("tandem_escalation_bytes_total", model="colors", direction="up") == 77
    assert len(cloud.asked) == 1
    assert edge.series("tandem_agreement_total") == {}


@pytest.mark.parametrize("mode", ["cascade", "cloud", "split"])
async def test_cloud_that_is_known_to_be_away_costs_no_work(
    edge: Node, cloud: CloudSimulator, mode: str
) -> None:
    cloud.absent = CloudUnreachable("no connection")
    outcome = await edge.ask(picture(UNSURE), mode=mode)
    assert (outcome.source, outcome.reason) == (Source.EDGE_FALLBACK, "cloud_unreachable")
    assert "head" not in outcome.timings_ms
    assert "cloud" not in outcome.timings_ms
    assert cloud.asked == []
    assert edge.series("tandem_escalations_total") == {}


@pytest.mark.parametrize("mode", ["cascade", "cloud", "split"])
async def test_node_without_a_cloud(colors: Path, mode: str) -> None:
    with node(colors) as alone:
        outcome = await alone.ask(picture(UNSURE), mode=mode)
        assert (outcome.source, outcome.reason, outcome.degraded) == ("edge_fallback", "no_cloud", True)
        assert counted(alone) == {("colors", "no_cloud", "edge_fallback"): 1}


async def test_node_without_a_cloud_is_not_degraded_where_it_is_sure(colors: Path) -> None:
    with node(colors) as alone:
        outcome = await alone.ask(picture(SURE))
        assert (outcome.source, outcome.reason, outcome.degraded) == ("edge", "confident", False)


@pytest.mark.parametrize("mode", ["cascade", "cloud", "split"])
async def test_no_call_is_made_when_the_time_is_spent(edge: Node, cloud: CloudSimulator, mode: str) -> None:
    outcome = await edge.ask(picture(UNSURE), mode=mode, deadline_ms=50, late_s=1.0)
    assert (outcome.source, outcome.reason, outcome.degraded) == (Source.EDGE_FALLBACK, "budget", True)
    assert cloud.asked == []
    assert outcome.timings_ms["total"] >= 1000


async def test_time_that_the_edge_would_need_is_kept_back(edge: Node, cloud: CloudSimulator) -> None:
    reserve = edge.slots.get("colors").reserve_s
    await edge.ask(picture(UNSURE), mode="cloud", deadline_ms=10_000)
    await edge.ask(picture(UNSURE), mode="split", deadline_ms=10_000)
    await edge.ask(picture(UNSURE), mode="cascade", deadline_ms=10_000)
    for_cloud, for_split, for_cascade = cloud.timeouts
    assert reserve > 0
    assert for_cloud <= 10 - reserve
    assert for_split <= 10 - reserve
    assert 5 < for_cascade < 10


@pytest.mark.parametrize("mode", ["cascade", "cloud"])
async def test_a_margin_is_kept_back_for_the_answer_to_be_in_time(
    edge: Node, cloud: CloudSimulator, mode: str
) -> None:
    """Also where the edge's answer is in hand: a setting and the event loop's lag, a quarter at most."""
    edge.lag_s = 0.5
    await edge.ask(picture(UNSURE), mode=mode, deadline_ms=10_000)
    await edge.ask(picture(UNSURE), mode=mode, deadline_ms=1000)
    long, short = cloud.timeouts
    assert 5 < long <= 10 - 0.5 - edge.settings.reserve_ms / 1000
    assert short <= 0.75


@pytest.mark.parametrize("mode", ["cascade", "cloud", "split"])
async def test_silent_cloud_costs_no_more_than_the_deadline(
    edge: Node, cloud: CloudSimulator, mode: str
) -> None:
    cloud.silent = True
    outcome = await edge.ask(picture(UNSURE), mode=mode, deadline_ms=200)
    (timeout,) = cloud.timeouts
    assert timeout < 0.2
    assert outcome.timings_ms["cloud"] < 2000
    assert (outcome.source, outcome.reason) == (Source.EDGE_FALLBACK, "deadline")
    assert outcome.prediction.label == "red"


@pytest.mark.parametrize(("cut", "name"), [(None, "pixels"), ("pixels", "pixels"), ("means", "means")])
async def test_features_of_the_cut_go_up(
    edge: Node, cloud: CloudSimulator, cut: str | None, name: str
) -> None:
    outcome = await edge.ask(picture(UNSURE), mode="split", cut=cut)
    assert outcome.cut == name
    (query,) = cloud.asked
    assert query.model == f"colors.tail.{name}"
    assert {key: (value.dtype, value.shape) for key, value in query.inputs.items()} == {
        "features": (np.dtype(np.uint8), (1, 3, 8, 8) if name == "pixels" else (1, 3))
    }
    assert edge.series("tandem_escalations_total") == {("colors", "features"): 1}


@pytest.fixture(scope="module")
def exit_colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose edge model is an early exit at its second cut."""
    return write_bundle(tmp_path_factory.mktemp("exit") / "colors", exit_at="means")


@pytest.fixture
def exit_cloud(exit_colors: Path) -> CloudSimulator:
    return CloudSimulator(exit_colors)


@pytest.fixture
def exiting(exit_colors: Path, exit_cloud: CloudSimulator) -> Iterator[Node]:
    """A node with that bundle, its edge model's runs counted."""
    with node(exit_colors, cloud=exit_cloud) as made:
        count_runs(made)
        yield made


def count_runs(exiting: Node) -> None:
    """Begin to count: how often the models ran to be checked and warmed up is nobody's business."""
    model = exiting.slots.get("colors")
    edge = replace(model.edge, on_run=lambda samples, _: exiting.edge_runs.append(samples))
    exiting.slots.load([replace(model, edge=edge)])


def edge_runs(exiting: Node) -> int:
    """How often the edge model has run for requests."""
    return len(exiting.edge_runs)


@pytest.mark.parametrize(
    ("color", "wants", "source", "reason", "label"),
    [
        (SURE, {}, "edge", "confident", "red"),
        (SURE_BUT_WRONG, {}, "edge", "confident", "red"),
        (SURE_BUT_WRONG, {"threshold": 0.99}, "cloud", "low_confidence", "blue"),
        (UNSURE, {}, "cloud", "low_confidence", "blue"),
        (UNSURE, {"threshold": 0.36}, "edge", "confident", "red"),
        (UNSURE, {"threshold": 0.38}, "cloud", "low_confidence", "blue"),
        (UNSURE_AND_RIGHT, {"cut": "means"}, "cloud", "low_confidence", "blue"),
        (SURE, {"cut": "pixels"}, "cloud", "mode", "red"),
        (UNSURE, {"cut": "pixels"}, "cloud", "mode", "blue"),
    ],
)
async def test_split_at_the_cut_of_an_early_exit_is_answered_by_it_where_it_is_sure(
    exiting: Node,
    exit_cloud: CloudSimulator,
    color: Color,
    wants: dict[str, Any],
    source: str,
    reason: str,
    label: str,
) -> None:
    outcome = await exiting.ask(picture(color), mode="split", **wants)
    assert (outcome.source, outcome.reason, outcome.prediction.label) == (source, reason, label)
    assert (outcome.degraded, outcome.mode) == (False, "split")
    assert (outcome.cut, outcome.threshold) == (wants.get("cut", "means"), wants.get("threshold", 0.8))
    assert (outcome.edge is None) == (outcome.cut == "pixels")
    assert (outcome.bytes_up > 0) == len(exit_cloud.asked) == (source == "cloud")
    assert edge_runs(exiting) == (outcome.cut == "means")
    assert counted(exiting) == {("colors", reason, source): 1}


@pytest.mark.parametrize(
    ("color", "cut", "stages"),
    [
        (SURE, "means", {"preprocess", "edge", "total"}),
        (UNSURE, "means", {"preprocess", "edge", "cloud", "total"}),
        (UNSURE, "pixels", {"preprocess", "head", "cloud", "total"}),
    ],
)
async def test_stages_of_a_split_with_an_early_exit(
    exiting: Node, color: Color, cut: str, stages: set[str]
) -> None:
    outcome = await exiting.ask(picture(color), mode="split", cut=cut)
    assert outcome.timings_ms.keys() == stages


async def test_features_of_an_early_exit_go_up(exiting: Node, exit_cloud: CloudSimulator) -> None:
    outcome = await exiting.ask(picture(UNSURE), mode="split")
    (query,) = exit_cloud.asked
    assert query.model == "colors.tail.means"
    assert query.inputs.keys() == {"features"}
    features = query.inputs["features"]
    assert (features.dtype, features.tolist()) == (np.dtype(np.uint8), [[130, 128, 128]])
    assert is_unsure_of_red(outcome.edge)
    assert exiting.series("tandem_escalations_total") == {("colors", "features"): 1}
    assert exiting.series("tandem_agreement_total") == {("false", "colors"): 1}
    assert exiting.value("tandem_confidence_count", model="colors") == 1


@pytest.mark.parametrize("mode", ["edge", "cascade", "cloud"])
async def test_other_modes_do_not_see_the_early_exit(
    exiting: Node, exit_cloud: CloudSimulator, mode: str
) -> None:
    outcome = await exiting.ask(picture(UNSURE), mode=mode)
    assert outcome.cut is None
    assert [query.model for query in exit_cloud.asked] == ([] if mode == "edge" else ["colors.image"])
    assert edge_runs(exiting) == (mode != "cloud")


@pytest.mark.parametrize("reason", FAILURES)
async def test_early_exit_has_answered_already_when_the_cloud_does_not(
    exiting: Node, exit_cloud: CloudSimulator, reason: str
) -> None:
    failure = FAILURES[reason]()
    failure.bytes_up = 77
    exit_cloud.failure = failure
    outcome = await exiting.ask(picture(UNSURE), mode="split")
    assert (outcome.source, outcome.reason, outcome.degraded) == (Source.EDGE_FALLBACK, reason, True)
    assert (outcome.prediction.label, outcome.bytes_up) == ("red", 77)
    assert is_unsure_of_red(outcome.edge)
    assert (edge_runs(exiting), len(exit_cloud.asked)) == (1, 1)
    assert counted(exiting) == {("colors", reason, "edge_fallback"): 1}
    assert exiting.series("tandem_fallbacks_total") == {("colors", reason): 1}


@pytest.mark.parametrize("reason", ["no_cloud", "budget", "cloud_unreachable"])
async def test_early_exit_answers_where_the_cloud_is_not_asked(
    exit_colors: Path, exit_cloud: CloudSimulator, reason: str
) -> None:
    exit_cloud.absent = CloudUnreachable("no connection")
    late_s = 60.0 if reason == "budget" else 0.0
    with node(exit_colors, cloud=None if reason == "no_cloud" else exit_cloud) as exiting:
        count_runs(exiting)
        sure = await exiting.ask(picture(SURE), mode="split", late_s=late_s)
        assert (sure.source, sure.reason, sure.degraded) == ("edge", "confident", False)
        unsure = await exiting.ask(picture(UNSURE), mode="split", late_s=late_s)
        assert (unsure.source, unsure.reason, unsure.degraded) == ("edge_fallback", reason, True)
        assert edge_runs(exiting) == 2
        assert exit_cloud.asked == []
        assert exiting.series("tandem_escalations_total") == {}


async def test_nothing_is_kept_back_once_the_early_exit_has_answered(
    exiting: Node, exit_cloud: CloudSimulator
) -> None:
    exiting.slots.load([replace(exiting.slots.get("colors"), reserve_s=15.0)])
    await exiting.ask(picture(UNSURE), mode="split", deadline_ms=20_000)
    await exiting.ask(picture(UNSURE), mode="split", cut="pixels", deadline_ms=20_000)
    at_exit, elsewhere = exit_cloud.timeouts
    assert elsewhere <= 5 < at_exit < 20


async def test_query_names_the_version_and_the_bundle(
    edge: Node, cloud: CloudSimulator, colors: Path
) -> None:
    outcome = await edge.ask(picture(UNSURE), request_id="id-7")
    (query,) = cloud.asked
    assert (query.id, query.version) == ("id-7", "1")
    assert query.parameters == {"tandem_bundle": load_bundle(colors).digest}
    assert (query.expect.name, query.expect.datatype, query.expect.shape) == ("logits", "FP32", (3,))
    assert outcome.id == "id-7"


async def test_id_is_made_where_none_was_given(edge: Node) -> None:
    ids = {(await edge.ask(picture(SURE))).id for _ in range(3)}
    assert len(ids) == 3
    assert all(ids)


@pytest.mark.parametrize(
    ("payload", "sample", "model", "size"),
    [
        (Payload.SMALLEST, picture(UNSURE), "colors.image", len(picture(UNSURE))),
        (Payload.SMALLEST, noise(), "colors", 768),
        (Payload.SMALLEST, pixels(UNSURE), "colors", 768),
        (Payload.TENSOR, picture(UNSURE), "colors", 768),
    ],
    ids=["small image", "large image", "tensor", "image but tensors are wanted"],
)
async def test_the_smaller_of_image_and_tensor_goes_up(
    colors: Path, cloud: CloudSimulator, payload: Payload, sample: Any, model: str, size: int
) -> None:
    with node(colors, cloud=cloud, payload=payload) as edge:
        outcome = await edge.ask(sample, mode="cloud")
        assert outcome.source is Source.CLOUD
        (query,) = cloud.asked
        assert query.model == model
        (array,) = query.inputs.values()
        assert (len(array[0]) if array.dtype == object else array.nbytes) == size
        assert edge.series("tandem_escalations_total") == {("colors", "input"): 1}


async def test_bytes_are_those_of_the_messages(edge: Node, cloud: CloudSimulator) -> None:
    outcome = await edge.ask(picture(UNSURE))
    assert outcome.bytes_up > len(picture(UNSURE))
    assert outcome.bytes_down == BYTES_DOWN
    for direction, size in (("up", outcome.bytes_up), ("down", BYTES_DOWN)):
        assert edge.value("tandem_escalation_bytes_total", model="colors", direction=direction) == size


async def test_confidence_and_agreement_are_counted(edge: Node) -> None:
    for color in (SURE, UNSURE, UNSURE_AND_RIGHT):
        await edge.ask(picture(color))
    await edge.ask(picture(UNSURE), mode="cloud")
    assert edge.value("tandem_confidence_count", model="colors") == 3
    assert edge.series("tandem_agreement_total") == {("true", "colors"): 1, ("false", "colors"): 1}
    assert edge.value("tandem_threshold", model="colors") == 0.8


async def test_tensors_are_answered_as_images_are(edge: Node) -> None:
    image = await edge.ask(picture(SURE))
    tensor = await edge.ask(pixels(SURE))
    assert tensor.prediction == image.prediction
    assert "preprocess" not in tensor.timings_ms


@pytest.mark.parametrize(
    ("top_k", "labels"), [(1, ["red"]), (2, ["red", "green"]), (9, ["red", "green", "blue"])]
)
async def test_top_k(edge: Node, top_k: int, labels: list[str]) -> None:
    outcome = await edge.ask(picture(SURE), top_k=top_k)
    assert [item.label for item in outcome.prediction.top_k] == labels


@pytest.mark.parametrize(
    ("threshold", "source"), [(0.0, "edge"), (0.36, "edge"), (0.38, "cloud"), (1.0, "cloud")]
)
async def test_threshold_of_a_request(edge: Node, threshold: float, source: str) -> None:
    outcome = await edge.ask(picture(UNSURE), threshold=threshold)
    assert (outcome.source, outcome.threshold) == (source, threshold)


@pytest.mark.parametrize(
    ("own", "wants", "expected"),
    [
        ({}, {}, (Mode.CLOUD, None, 0.8)),
        ({"mode": "edge"}, {}, (Mode.EDGE, None, 0.8)),
        ({"mode": "split", "cut": "means"}, {}, (Mode.SPLIT, "means", 0.8)),
        ({"mode": "split", "cut": "means"}, {"cut": "pixels"}, (Mode.SPLIT, "pixels", 0.8)),
        ({"mode": "split", "cut": "means"}, {"mode": "cascade"}, (Mode.CASCADE, None, 0.8)),
        ({"threshold": 0.0}, {}, (Mode.CLOUD, None, 0.0)),
        ({"threshold": 0.0}, {"threshold": 0.5}, (Mode.CLOUD, None, 0.5)),
        ({"threshold": 0.5}, {"threshold": 0.0}, (Mode.CLOUD, None, 0.0)),
    ],
)
async def test_request_goes_before_the_models_settings_and_those_before_the_services(
    colors: Path,
    cloud: CloudSimulator,
    own: dict[str, Any],
    wants: dict[str, Any],
    expected: tuple[Mode, str | None, float],
) -> None:
    with node(colors, cloud=cloud, mode="cloud", models={"colors": own}) as edge:
        outcome = await edge.ask(picture(UNSURE), **wants)
        assert (outcome.mode, outcome.cut, outcome.threshold) == expected


async def test_deadline_of_a_model_goes_before_that_of_the_service(
    colors: Path, cloud: CloudSimulator
) -> None:
    with node(colors, cloud=cloud, deadline_ms=1, models={"colors": {"deadline_ms": 30_000}}) as edge:
        assert (await edge.ask(picture(UNSURE))).source is Source.CLOUD
        assert (await edge.ask(picture(UNSURE), deadline_ms=1, late_s=0.002)).reason == "budget"


async def test_calibration_of_the_bundle_makes_the_confidence(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "cool", temperature=20.0, scorer="margin", threshold=0.3)
    with node(folder) as edge:
        outcome = await edge.ask(picture(SURE), mode="edge")
        e = np.e
        assert outcome.edge is not None
        assert outcome.edge.confidence == pytest.approx((e - 1) / (e + 2), abs=1e-4)
        assert outcome.prediction.confidence == pytest.approx(e / (e + 2), abs=1e-4)
        assert (await edge.ask(picture(SURE))).reason == "confident"


@pytest.mark.parametrize(
    ("sample", "changes", "error", "text"),
    [
        (picture(SURE), {"model": "shapes"}, ModelNotFound, "'shapes' is not served here, only colors"),
        (picture(SURE), {"version": "2"}, ModelNotFound, "version: '2' of model 'colors' is not served"),
        (picture(SURE), {"mode": "auto", "cut": "means"}, InvalidInput, "only mode 'split' takes a cut"),
        (picture(SURE), {"mode": "split", "cut": "x"}, InvalidInput, "cut: 'x' is not one of pixels, means"),
        (picture(SURE), {"mode": "edge", "cut": "means"}, InvalidInput, "only mode 'split' takes a cut"),
        (b"hello", {}, InvalidInput, "not one of JPEG, PNG, WEBP"),
        (b"", {}, InvalidInput, "empty"),
        (picture(SURE)[:-30], {}, InvalidInput, "truncated or damaged"),
        (picture(SURE, size=(40, 40)), {}, TooLarge, "1600 pixels, the limit is 1500"),
        (pixels(SURE)[0], {}, InvalidInput, "shape must be"),
        (pixels(SURE).astype("f8"), {}, InvalidInput, "datatype must be FP32"),
        (pixels(SURE) * np.float32("nan"), {}, InvalidInput, "NaN or an infinity"),
    ],
)
@pytest.mark.parametrize("mode", ["cascade", "cloud", "split"])
async def test_bad_input_is_refused_in_every_mode(
    colors: Path,
    cloud: CloudSimulator,
    mode: str,
    sample: Any,
    changes: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with node(colors, cloud=cloud, max_pixels=1500) as edge:
        with pytest.raises(error, match=text):
            await edge.ask(sample, **{"mode": mode, **changes})
        assert counted(edge) == {}
        assert cloud.asked == []
        assert edge.value("tandem_inflight_requests") == 0
        assert (await edge.ask(picture(SURE))).prediction.label == "red"
        assert sum(counted(edge).values()) == 1


async def test_model_on_tensors_takes_no_images(tmp_path: Path) -> None:
    with node(write_bundle(tmp_path / "plain", preprocess=False)) as edge:
        with pytest.raises(InvalidInput, match="'colors' takes tensors, not images"):
            await edge.ask(picture(SURE))
        assert (await edge.ask(pixels(SURE))).prediction.label == "red"


async def test_split_without_cuts(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "whole", cuts=())
    with node(folder) as edge, pytest.raises(InvalidInput, match="this model's bundle has none"):
        await edge.ask(picture(SURE), mode="split")


async def test_request_before_the_models_are_loaded(colors: Path) -> None:
    with node(colors, loaded=False) as edge, pytest.raises(Overloaded, match="still loading"):
        await edge.ask(picture(SURE))


@pytest.fixture
def narrow(colors: Path, cloud: CloudSimulator) -> Iterator[Node]:
    with node(colors, cloud=cloud, max_inflight=1) as made:
        yield made


async def test_more_than_the_limit_in_flight_is_refused(narrow: Node, cloud: CloudSimulator) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    first = asyncio.create_task(narrow.ask(picture(UNSURE), deadline_ms=500))
    await cloud.arrived.wait()
    assert narrow.value("tandem_inflight_requests") == 1
    with pytest.raises(
        Overloaded, match="1 samples are being answered and 1 more asked for, the limit is 1"
    ) as caught:
        await narrow.ask(picture(SURE))
    assert caught.value.retry_after_s > 0
    assert (await first).reason == "deadline"
    assert narrow.value("tandem_inflight_requests") == 0
    assert (await narrow.ask(picture(SURE))).reason == "confident"
    assert sum(counted(narrow).values()) == 2


async def test_caller_that_leaves_makes_room_and_is_not_counted(narrow: Node, cloud: CloudSimulator) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    leaving = asyncio.create_task(narrow.ask(picture(UNSURE)))
    await cloud.arrived.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert narrow.value("tandem_inflight_requests") == 0
    assert (await narrow.ask(picture(SURE))).reason == "confident"
    assert counted(narrow) == {("colors", "confident", "edge"): 1}


async def test_request_keeps_the_model_it_began_with(
    edge: Node, cloud: CloudSimulator, tmp_path: Path
) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    first = asyncio.create_task(edge.ask(picture(UNSURE), mode="cloud", deadline_ms=300))
    await cloud.arrived.wait()
    given: dict[str, Any] = {"bundles": (write_bundle(tmp_path / "new", version="2"),)}
    edge.slots.load(load_models(Settings(**given)))
    assert (await edge.ask(picture(SURE))).model.version == "2"
    outcome = await first
    assert (outcome.model.version, outcome.source) == ("1", Source.EDGE_FALLBACK)


async def test_many_at_once_each_get_their_own(edge: Node) -> None:
    given = [(SURE, "red", "edge"), (UNSURE, "blue", "cloud"), (SURE_BUT_WRONG, "red", "edge")] * 10
    outcomes = await asyncio.gather(*(edge.ask(picture(color)) for color, _, _ in given))
    assert [(o.prediction.label, o.source.value) for o in outcomes] == [(label, s) for _, label, s in given]
    assert counted(edge) == {("colors", "confident", "edge"): 20, ("colors", "low_confidence", "cloud"): 10}


async def test_logits_stand_behind_the_prediction(edge: Node) -> None:
    answer = await edge.joint.infer(
        Ask(edge.slots.get("colors"), picture(UNSURE), time.monotonic(), wants=Wishes(mode=Mode.CLOUD))
    )
    assert (answer.logits.dtype, answer.logits.shape) == (np.dtype(np.float32), (1, 3))
    assert int(answer.logits.argmax()) == answer.outcome.prediction.index


@pytest.mark.parametrize(
    ("asked", "models", "goes_up"),
    [
        (None, {}, None),
        ("normal", {}, None),
        ("critical", {}, "critical"),
        ("background", {}, "background"),
        (None, {"colors": {"priority": "background"}}, "background"),
        ("critical", {"colors": {"priority": "background"}}, "critical"),
    ],
)
async def test_the_class_goes_up_where_it_is_not_the_usual(
    colors: Path,
    cloud: CloudSimulator,
    asked: str | None,
    models: dict[str, dict[str, str]],
    goes_up: str | None,
) -> None:
    with node(colors, cloud=cloud, models=models) as made:
        await made.ask(picture(UNSURE), priority=asked)
        assert cloud.asked[-1].parameters.get("tandem_priority") == goes_up


async def test_what_is_turned_away_is_counted_by_class(narrow: Node, cloud: CloudSimulator) -> None:
    cloud.silent, cloud.arrived = True, asyncio.Event()
    first = asyncio.create_task(narrow.ask(picture(UNSURE), deadline_ms=500))
    await cloud.arrived.wait()
    for priority in ("critical", "background"):
        with pytest.raises(Overloaded):
            await narrow.ask(picture(SURE), priority=priority)
    await first
    shed = {labels: value for labels, value in narrow.series("tandem_shed_requests_total").items() if value}
    assert shed == {("critical", "full"): 1, ("background", "full"): 1}
    assert narrow.value("tandem_inflight_limit") == 1
    assert narrow.value("tandem_waiting_samples", priority="normal") == 0


@pytest.mark.parametrize("why", ["away", "private"])
async def test_who_wants_the_cloud_and_cannot_have_it_stands_in_line_here(
    colors: Path, cloud: CloudSimulator, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    cloud.absent = CloudUnreachable("gone") if why == "away" else None
    with node(colors, cloud=cloud, privacy="any" if why == "away" else "features-only") as made:
        monkeypatch.setattr(made.runner, "wait_s", lambda *_: 60.0)
        with pytest.raises(Overloaded) as caught:
            await made.ask(picture(UNSURE), mode="cloud", deadline_ms=1000)
        assert caught.value.why == "deadline"
        if why == "away":
            cloud.absent = None
            assert (await made.ask(picture(UNSURE), mode="cloud", deadline_ms=1000)).source is Source.CLOUD


async def test_time_at_the_cloud_does_not_make_the_edge_refuse(colors: Path, cloud: CloudSimulator) -> None:
    cloud.silent = True
    with node(colors, cloud=cloud, max_inflight=8) as made:
        for _ in range(3):
            asks = [made.ask(picture(UNSURE), mode="cloud", deadline_ms=60) for _ in range(8)]
            assert {outcome.source for outcome in await asyncio.gather(*asks)} == {Source.EDGE_FALLBACK}
        assert made.value("tandem_inflight_limit") == 8


# ---- an edge model that fails


async def test_the_cloud_answers_where_the_edge_model_fails_and_the_input_may_go_up(tmp_path: Path) -> None:
    folder = failing_bundle(tmp_path / "fails")
    cloud = CloudSimulator(folder)
    with node(folder, cloud=cloud) as made:
        outcome = await made.ask(picture(SURE))
        assert (outcome.source, outcome.reason, outcome.degraded) == (Source.CLOUD, "edge_failed", True)
        assert (outcome.edge, outcome.prediction.label) == (None, "red")
        with pytest.raises(ModelError):
            await made.ask(picture(SURE), mode="edge")
        cloud.failure = CloudUnreachable("gone")
        with pytest.raises(ModelError):
            await made.ask(picture(SURE))
    for without in ({"cloud": None}, {"cloud": cloud, "privacy": "never-leaves-the-edge"}):
        with node(folder, **without) as made, pytest.raises(ModelError):
            await made.ask(picture(SURE))
    assert len(cloud.asked) == 2


@pytest.mark.parametrize("edge_first", [True, False])
async def test_an_answer_in_hand_is_given_where_the_features_cannot_be_made(
    colors: Path, cloud: CloudSimulator, monkeypatch: pytest.MonkeyPatch, edge_first: bool
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the head fails")

    with node(colors, cloud=cloud) as made:
        monkeypatch.setattr(made.joint._navigator, "edge_first", lambda _: edge_first)
        monkeypatch.setattr(made.joint._navigator, "choose", lambda *_: Way(Kind.FEATURES, "pixels"))
        monkeypatch.setattr(made.slots.get("colors").heads["pixels"].engine, "compute", fail)
        if edge_first:
            outcome = await made.ask(picture(UNSURE), mode="auto")
            assert (outcome.source, outcome.reason, outcome.degraded) == (
                Source.EDGE_FALLBACK,
                "head_failed",
                True,
            )
        else:
            with pytest.raises(ModelError, match="the head fails"):
                await made.ask(picture(UNSURE), mode="auto")


async def test_what_stands_in_for_a_failed_model_needs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = failing_bundle(tmp_path / "fails")
    with node(folder, cloud=CloudSimulator(folder)) as made:
        monkeypatch.setattr(made.joint._navigator, "edge_first", lambda _: True)
        monkeypatch.setattr(made.joint._navigator, "choose", lambda *_: Way(Kind.FEATURES, "pixels"))
        outcome = await made.ask(picture(SURE), mode="auto")
        assert (outcome.source, outcome.reason) == (Source.CLOUD, "edge_failed")
