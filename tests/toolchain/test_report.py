"""The report as plain values: nothing is lost on the way to `report.json`."""

import json
from dataclasses import fields
from typing import Any

from inference_core.confidence import Scorer
from toolchain.calibrate import Calibrated, Curve, CurveRow, ScorerFigures
from toolchain.certify import GAP, METHOD, Certified
from toolchain.report import CutRow, ExitRow, FormRow, PairRow, Report
from toolchain.runs import Latency
from toolchain.sensitivity import Layer

TIME = Latency(1.5, 2.5)


def _report(**changes: Any) -> Report:
    form = FormRow(
        "edge", "int8", "int8", "static", 100, 200, TIME, TIME, 0.5, 0.75, 0.01, "served", "", ("c",)
    )
    content: dict[str, Any] = {
        "model": "m",
        "version": "1",
        "reference": "labels",
        "made": {"seed": 3},
        "data": {"test": 20},
        "notes": ("a note",),
        "forms": (form,),
        "layers": (Layer("conv", "Conv", 0.25),),
        "cuts": (CutRow("at10", ("x", "y"), 0.1, 400, 100, 50, 1.0, 2.0, False),),
        "exits": (ExitRow("at10", 0.5, 0.6, 0.7, True),),
        "calibration": Calibrated(
            Scorer.MARGIN, 1.5, (ScorerFigures(Scorer.MARGIN, 0.1),), ece=0.1, ece_before=0.2, samples=9
        ),
        "curve": Curve((CurveRow(0.0, 0.0, 0.5, 0.6, 0.1),), (0.5,), (0.5,)),
        "certificate": Certified(GAP, 0.01, 0.95, 300, METHOD, 0.5, 0.0, 0.2),
        "test": PairRow(20, 0.5, 0.2, 0.9, 0.95, 0.8, 0.05, 0.01, 0.9, 0.1, 256, 200, None),
    }
    return Report(**{**content, **changes})


def test_every_field_is_there_and_survives_json() -> None:
    report = _report()
    content = report.as_json()
    assert set(content) == {field.name for field in fields(Report)}
    read = json.loads(json.dumps(content))
    assert read["forms"][0]["one_thread"] == {"p50": 1.5, "p99": 2.5}
    assert read["forms"][0]["in_float"] == ["c"]
    assert read["cuts"][0]["tensors"] == ["x", "y"]
    assert (read["cuts"][0]["agreement"], read["cuts"][0]["precision"]) == (None, None)
    assert read["calibration"]["scorer"] == "margin"
    assert read["curve"]["rows"][0]["threshold"] == 0.0
    assert read["certificate"]["bound"] == 0.01
    assert read["test"]["image_bytes"] is None
    assert read["layers"][0]["name"] == "conv"


def test_there_may_be_no_certificate() -> None:
    assert _report(certificate=None).as_json()["certificate"] is None
