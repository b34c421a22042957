"""A split where the edge model exits early: it answers by itself, or the features that it has made go up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_core.bundle import load_bundle
from inference_core.tensors import to_request
from tests.bundles import (
    LABELS,
    SURE,
    SURE_BUT_WRONG,
    UNSURE,
    UNSURE_AND_RIGHT,
    Color,
    picture,
    pixels,
    write_bundle,
)
from tests.joint.device import Answer, Device
from tests.joint.scrape import Samples
from tests.joint.services import Service, Services, eventually, get_json

CUT = "means"
DEADLINE_MS = 2000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors", exit_at=CUT)


@pytest.fixture(scope="module")
def both(module_services: Services, bundle: Path) -> tuple[Service, Service]:
    """An edge and a cloud that know each other."""
    return start(module_services, bundle)


def start(services: Services, bundle: Path) -> tuple[Service, Service]:
    cloud = services.cloud(bundle)
    edge = services.edge(bundle, cloud.wait_ready().ports[1], mode="split", deadline_ms=DEADLINE_MS)
    edge.wait_ready()
    eventually(lambda: ask(edge, UNSURE).source == "cloud", 5, "the edge reaches the cloud")
    return edge, cloud


def ask(edge: Service, color: Color, **query: Any) -> Answer:
    return Device(edge.ports[0]).predict(picture(color), **query)


def rise(name: str, before: Samples, after: Samples, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)


def features_bytes(bundle: Path, color: Color, request_id: str) -> int:
    """The size of the message that brings the features of one image at the cut, and nothing else."""
    features = {"features": np.array([color], np.uint8)}
    parameters = {"tandem_bundle": load_bundle(bundle).digest}
    return to_request(f"colors.tail.{CUT}", "1", features, parameters, request_id).ByteSize()


@pytest.mark.parametrize("color", [SURE, SURE_BUT_WRONG])
def test_what_the_exit_is_sure_of_stays_here(both: tuple[Service, Service], color: Color) -> None:
    edge, cloud = both
    before, cloud_before = edge.metrics(), cloud.metrics()
    answer = ask(edge, color)
    assert (answer.status, *answer.who, answer.label) == (200, "edge", "confident", "red")
    assert (answer.body["mode"], answer.body["cut"]) == ("split", CUT)
    assert (answer.body["bytes_up"], answer.body["bytes_down"], answer.body["degraded"]) == (0, 0, False)
    assert answer.body["timings_ms"].keys() == {"preprocess", "edge", "total"}
    after, cloud_after = edge.metrics(), cloud.metrics()
    assert rise("tandem_escalations_total", before, after) == 0
    assert rise("tandem_cloud_requests_total", cloud_before, cloud_after) == 0


@pytest.mark.parametrize(
    ("color", "query"), [(UNSURE, {}), (UNSURE_AND_RIGHT, {}), (SURE_BUT_WRONG, {"threshold": 0.99})]
)
def test_of_what_it_is_not_sure_of_the_features_go_up_and_nothing_else(
    both: tuple[Service, Service], bundle: Path, color: Color, query: dict[str, Any]
) -> None:
    edge, cloud = both
    before, cloud_before = edge.metrics(), cloud.metrics()
    answer = ask(edge, color, **query)
    after, cloud_after = edge.metrics(), cloud.metrics()
    assert (answer.status, *answer.who, answer.label) == (200, "cloud", "low_confidence", "blue")
    assert answer.body["edge"]["label"] == LABELS[int(np.argmax(color))]
    assert {"edge", "cloud"} < answer.body["timings_ms"].keys()
    assert "head" not in answer.body["timings_ms"]

    size = features_bytes(bundle, color, answer.body["id"])
    # on a stream it has its deadline with it, and an id of the stream's
    bytes_up = answer.body["bytes_up"]
    assert 0 < bytes_up - size < 48
    assert rise("tandem_cloud_bytes_total", cloud_before, cloud_after, direction="received") == bytes_up
    assert rise("tandem_escalations_total", before, after, route="features") == 1


def test_it_is_the_full_model_that_goes_on_from_the_features(both: tuple[Service, Service]) -> None:
    edge, _ = both
    ways: list[dict[str, Any]] = [{"mode": "cloud"}, {"cut": "pixels"}, {"threshold": 1.0}]
    for red in (0, 100, 130, 150):
        answers = [ask(edge, (red, 128, 120), **way) for way in ways]
        assert [a.who for a in answers] == [("cloud", r) for r in ("mode", "mode", "low_confidence")]
        assert len({a.label for a in answers}) == 1
        confidences = [a.body["prediction"]["confidence"] for a in answers]
        assert max(confidences) - min(confidences) < 1e-3


def test_the_exit_is_no_output_of_the_model(both: tuple[Service, Service]) -> None:
    edge, _ = both
    port = edge.ports[0]
    logits = [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert get_json(port, "/v2/models/colors")["outputs"] == logits
    assert get_json(port, "/v1/models/colors")["edge"]["cut"] == CUT
    tensor = pixels(SURE, UNSURE)
    given = {"name": "input", "datatype": "FP32", "shape": tensor.shape, "data": tensor.ravel().tolist()}
    status, _, body = Device(port).post(
        "/v2/models/colors/infer", json.dumps({"inputs": [given]}).encode(), {}
    )
    answer = json.loads(body)
    assert (status, [output["name"] for output in answer["outputs"]]) == (200, ["logits"])
    assert answer["parameters"]["tandem_source"] == "edge,cloud"


def test_the_exit_answers_alone_when_the_cloud_has_died(services: Services, bundle: Path) -> None:
    edge, cloud = start(services, bundle)
    before = edge.metrics()
    cloud.kill()
    answer = ask(edge, UNSURE)
    assert (answer.status, *answer.who, answer.label) == (200, "edge_fallback", "cloud_unreachable", "red")
    assert answer.body["degraded"]
    assert answer.body["edge"]["label"] == "red"
    assert ask(edge, SURE).who == ("edge", "confident")
    assert rise("tandem_fallbacks_total", before, edge.metrics()) == 1
