"""What is served: bundles that an edge node takes, the same ones each time."""

from pathlib import Path

import numpy as np

from benchmarks.models import PRECISIONS, build, mid
from inference_core.bundle import load_bundle
from inference_core.engine import Engine


def test_both_precisions_are_bundles_with_right_answers(tmp_path: Path) -> None:
    served = build("tiny", tmp_path)
    assert tuple(served) == PRECISIONS
    for precision, model in served.items():
        bundle = load_bundle(model.bundle)
        assert bundle.manifest.edge_variant.precision == precision
        engine = bundle.engine(bundle.manifest.edge_variant, threads=1, providers=("CPUExecutionProvider",))
        assert np.allclose(engine.run({"input": model.sample})["logits"], model.logits, atol=1e-4)
        assert model.file.parent == model.bundle
        assert model.sample.shape == (1, 1, 28, 28)
    assert np.abs(served["fp32"].logits - served["int8"].logits).max() > 1e-4  # not the same file twice
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = build("tiny", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps
    assert np.array_equal(again["fp32"].logits, served["fp32"].logits)


def test_the_larger_network_is_always_the_same() -> None:
    data = mid(size=64)
    assert data == mid(size=64)
    engine = Engine(data, name="mid")
    assert engine.inputs[0].shape == (-1, 3, 64, 64)
    assert engine.outputs[0].shape == (-1, 1000)
