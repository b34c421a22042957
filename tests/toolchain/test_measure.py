"""What was made, measured: verdicts, variants and figures of both networks."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from inference_core.trust import sha256
from tests.toolchain import networks
from toolchain.calibrate import calibrate, confidences, losses
from toolchain.certify import GAP, METHOD, Certified
from toolchain.cuts import find_places, survey
from toolchain.forms import Form, Forms
from toolchain.graph import Graph, check
from toolchain.measure import Made, measure
from toolchain.package import Pieces
from toolchain.pair import Edge, Kept, Part
from toolchain.parts import Parts, partition
from toolchain.quantize import dynamic
from toolchain.recipe import Recipe
from toolchain.report import Report
from toolchain.runs import run_model
from toolchain.samples import Samples
from toolchain.split import split
from toolchain.storage import half_weights


@cache
def _graph() -> Graph:
    return check(networks.full_network(), "full.onnx")


def _samples(count: int, seed: int) -> Samples:
    x = networks.inputs(count, seed)
    return Samples(x, run_model(_graph().data, x).argmax(axis=1), 99.5)


def _part(samples: Samples) -> Part:
    assert samples.classes is not None
    return Part(samples.inputs, samples.classes, run_model(_graph().data, samples.inputs))


@cache
def _recipe() -> Recipe:
    return Recipe("shapes", "1", _graph(), _samples(100, seed=1), networks.LABELS, edge=_graph())


@cache
def _parts() -> Parts:
    return partition(_recipe().samples, 0)


@cache
def _made() -> Made:
    """An edge with noise that serves INT8, whose FP16 is refused, and one cut of several places."""
    noisy = check(networks.edge_network(), "edge.onnx").data
    forms = {
        "fp32": Form("fp32", "fp32", "as it came", noisy),
        "fp16": Form("fp16", "fp16", "half", half_weights(noisy), loss=0.5, refused="loses 50 points"),
        "int8": Form("int8", "int8", "dynamic", dynamic(noisy), loss=0.01, in_float=("conv",)),
    }
    calibration = _part(_parts().calibration)
    surveyed = survey(
        _graph().data,
        find_places(_graph().data, calibration.inputs[:1], all_sizes=True),
        calibration.inputs,
    )
    place = next(one.place for one in surveyed if one.place.tensors == ("inner",))
    halves = split(_graph().data, place.tensors, calibration.inputs, calibration.inputs)
    logits = calibration.logits(forms["int8"].data, "logits")
    edge = Edge(forms["int8"], forms, None, logits)
    return Made(
        _graph(),
        half_weights(_graph().data),
        Forms(forms),
        tuple(surveyed),
        {"early": Kept(halves, place)},
        edge,
        (),
        calibrate(logits, calibration.full, calibration.classes),
        Certified(GAP, 0.2, 0.95, 50, METHOD, 0.6, 0.0, 0.1),
    )


@pytest.fixture(scope="module")
def measured() -> tuple[Pieces, Report]:
    parts = _parts()
    return measure(_recipe(), _made(), _part(parts.certification), _part(parts.test), parts)


def test_each_form_gets_its_verdict(measured: tuple[Pieces, Report]) -> None:
    pieces, report = measured
    rows = {row.name: row for row in report.forms}
    assert {name: row.verdict for name, row in rows.items()} == {
        "full": "shipped",
        "fp32": "shipped",  # since FP16 cannot stand in for it
        "fp16": "refused",
        "int8": "served",
    }
    assert {name: row.model for name, row in rows.items()} == {
        "full": "full",
        "fp32": "edge",
        "fp16": "edge",
        "int8": "edge",
    }
    assert rows["fp16"].reason == "loses 50 points"
    assert rows["int8"].in_float == ("conv",)
    assert set(pieces.variants) == {"fp32", "int8"}
    assert (pieces.edge, pieces.full.data) == ("int8", _made().stored)
    assert rows["full"].bytes == len(_made().stored)


def test_fp32_is_not_shipped_where_fp16_stands_in_for_it() -> None:
    forms = {name: replace(form, refused="") for name, form in _made().forms.forms.items()}
    edge = replace(_made().edge, forms=forms)
    assert set(replace(_made(), edge=edge).shipped) == {"fp16", "int8"}
    served = replace(edge, form=forms["fp32"])
    assert set(replace(_made(), edge=served).shipped) == {"fp32", "fp16", "int8"}


def test_figures_are_of_the_test_part(measured: tuple[Pieces, Report]) -> None:
    pieces, report = measured
    test = _part(_parts().test)
    logits = test.logits(_made().edge.form.data, "logits")
    right = logits.argmax(axis=1) == test.classes
    row = next(row for row in report.forms if row.name == "int8")
    assert row.accuracy == right.mean() == pieces.variants["int8"].accuracy
    rule = report.calibration
    escalated = confidences(logits, rule.temperature, rule.scorer) < 0.6
    assert report.test.samples == len(test) == 20
    assert report.test.escalated == escalated.mean()
    assert report.test.edge_accuracy == right.mean()
    assert report.test.accuracy == (right | escalated).mean()  # the full model is always right here
    assert report.test.full_accuracy == 1.0
    assert report.test.risk == (losses(logits, test.full, test.classes) & ~escalated).mean()
    assert (report.test.image_bytes, report.test.input_bytes) == (99.5, 256)
    assert 0 < report.test.compressed_bytes < 256
    assert report.data["calibration"] == 30
    low, high = pieces.input_range
    assert (low, high) == (test.inputs.min(), test.inputs.max())


def test_only_cuts_that_are_kept_have_an_agreement(measured: tuple[Pieces, Report]) -> None:
    pieces, report = measured
    kept = {row.name: row for row in report.cuts if row.kept}
    assert list(kept) == list(pieces.cuts) == ["early"]
    assert len(report.cuts) == len(_made().surveyed) > 1
    assert kept["early"].agreement == pieces.cuts["early"].agreement
    assert 0.9 <= (kept["early"].agreement or 0) <= 1
    assert all(row.agreement is None and row.precision is None for row in report.cuts if not row.kept)


def test_the_certificate_names_the_files_it_is_for(measured: tuple[Pieces, Report]) -> None:
    pieces, report = measured
    certificate = pieces.calibration.certificate
    assert certificate is not None
    assert certificate.digests == (sha256(_made().edge.form.data), sha256(_made().stored))
    assert (certificate.bound, certificate.observed, certificate.escalated) == (0.2, 0.0, 0.1)
    assert pieces.calibration.threshold == certificate.threshold == 0.6
    assert pieces.calibration.samples == 30
    assert len(pieces.calibration.curve) == len(report.curve.rows)
    assert np.isclose(pieces.calibration.curve[-1].risk or 0.0, 0.0)
