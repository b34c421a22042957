"""The shipped bundles over the running services: every cut agrees with the full model, and accuracies are
those of the bundle's report. CIFAR-10's test images are found through `TANDEM_CIFAR10`."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_core.bundle import Manifest, load_bundle
from inference_core.tensors import from_bytes, to_bytes
from tests.joint.device import Device
from tests.joint.services import ROOT, Service, Services, eventually, get_json
from toolchain.images import LabelledImage, read_images
from toolchain.samples import Samples, Wanted, samples_of
from toolchain.scans import Part, read_scans

AGREE = 0.995
SAME = 0.002  # shares that are measured again may differ by so much
ROWS = 64
CONNECTIONS = 3
DEADLINE_MS = 60_000
SINGLE = 50  # images that are also sent one by one, as a device does

Classes = NDArray[np.int64]


@dataclass
class Running:
    """One shipped bundle as both services serve it, and the images that it is measured on."""

    manifest: Manifest
    report: dict[str, Any]
    edge: Service
    device: Device
    images: list[LabelledImage]
    samples: Samples


def _images(model: str) -> list[LabelledImage]:
    if model == "digits":
        return read_scans(Part.TEST)
    folder = os.environ.get("TANDEM_CIFAR10")
    if not folder:
        pytest.skip("TANDEM_CIFAR10 is not set")
    return read_images(Path(folder) / "test.zip")


@pytest.fixture(scope="module", params=["digits", "cifar10"])
def running(request: pytest.FixtureRequest, module_services: Services) -> Running:
    folder = ROOT / "models" / request.param
    if not (folder / "manifest.json").exists():
        pytest.skip(f"models/{request.param} is not there")
    images = _images(request.param)
    manifest = load_bundle(folder).manifest
    assert manifest.preprocess is not None
    cloud = module_services.cloud(folder, f"cloud {request.param}", threads=0)
    edge = module_services.edge(
        folder, cloud.ports[1], f"edge {request.param}", deadline_ms=DEADLINE_MS, max_inflight=1000
    )
    wanted = Wanted(manifest.input, len(manifest.labels), manifest.preprocess)
    samples = samples_of(images, wanted, manifest.labels)
    report = json.loads((folder / "report.json").read_text())["test"]
    cloud.wait_ready()
    device = Device(edge.wait_ready().ports[0], manifest.model)
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")
    return Running(manifest, report, edge, device, images, samples)


def answers(running: Running, **wants: object) -> tuple[Classes, list[str]]:
    """The class of each image, and from where, asked in batches over several connections."""
    parameters = {f"tandem_{name}": value for name, value in wants.items()} | {"binary_data_output": True}

    def ask(start: int) -> tuple[Classes, list[str]]:
        batch = running.samples.inputs[start : start + ROWS]
        content = {
            "name": running.manifest.input.name,
            "datatype": "FP32",
            "shape": batch.shape,
            "parameters": {"binary_data_size": batch.nbytes},
        }
        header = json.dumps({"parameters": parameters, "inputs": [content]}).encode()
        path = f"/v2/models/{running.manifest.model}/infer"
        length = {"Inference-Header-Content-Length": str(len(header))}
        status, headers, body = running.device.post(path, header + to_bytes(batch), length)
        assert status == 200, body
        end = int(headers["Inference-Header-Content-Length"])
        answer = json.loads(body[:end])
        (output,) = answer["outputs"]
        logits = from_bytes(output["name"], output["datatype"], output["shape"], body[end:])
        return logits.argmax(1), answer["parameters"]["tandem_source"].split(",")

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        parts = list(pool.map(ask, range(0, len(running.samples), ROWS)))
    return np.concatenate([classes for classes, _ in parts]), [s for _, sources in parts for s in sources]


@pytest.fixture(scope="module")
def full(running: Running) -> Classes:
    """What the full model says of each image, in cloud mode."""
    classes, sources = answers(running, mode="cloud")
    assert set(sources) == {"cloud"}
    return classes


def accuracy(running: Running, classes: Classes) -> float:
    return float(np.mean(classes == running.samples.classes))


def same(running: Running, share: float, reported: float) -> bool:
    """Whether both are the same share, give or take the rounding of one kind of processor or another."""
    return abs(share - reported) <= max(SAME, 1.5 / len(running.samples))


@pytest.mark.timeout(300)
def test_every_cut_agrees_with_cloud_mode(running: Running, full: Classes, note: Callable[..., None]) -> None:
    assert len(running.manifest.cuts) >= 2
    for cut in running.manifest.cuts:
        classes, sources = answers(running, mode="split", cut=cut.name)
        assert set(sources) == {"cloud"}
        agreement = float(np.mean(classes == full))
        note(cut=cut.name, images=str(len(full)), agreement_percent=agreement * 100)
        assert agreement >= AGREE


@pytest.mark.timeout(300)
def test_accuracies_are_those_of_the_report(
    running: Running, full: Classes, note: Callable[..., None]
) -> None:
    report = running.report
    edge, _ = answers(running, mode="edge")
    cascade, sources = answers(running, mode="cascade")
    assert set(sources) == {"edge", "cloud"}
    escalated = sources.count("cloud") / len(sources)
    measured = {
        "full": (accuracy(running, full), report["full_accuracy"]),
        "edge": (accuracy(running, edge), report["edge_accuracy"]),
        "cascade": (accuracy(running, cascade), report["accuracy"]),
        "escalated": (escalated, report["escalated"]),
    }
    note(**{name: f"{share:.4f} (report {reported:.4f})" for name, (share, reported) in measured.items()})
    assert report["samples"] == len(running.samples)
    for name, (share, reported) in measured.items():
        assert same(running, share, reported), name


def test_images_one_by_one_get_the_same_answers(running: Running, full: Classes) -> None:
    step = len(running.images) // SINGLE
    for at in range(0, step * SINGLE, step):
        image = running.images[at]
        kind = "image/png" if image.name.endswith(".png") else "image/jpeg"
        answer = running.device.predict(image.data, kind=kind, mode="cloud", deadline_ms=DEADLINE_MS)
        assert answer.source == "cloud"
        assert answer.body["prediction"]["index"] == full[at]


def test_what_is_served_is_what_ships(running: Running) -> None:
    described = get_json(running.edge.ports[0], f"/v1/models/{running.manifest.model}")
    assert described["threshold"] == running.manifest.calibration.threshold == running.report["threshold"]
    assert [cut["name"] for cut in described["cuts"]] == [cut.name for cut in running.manifest.cuts]
