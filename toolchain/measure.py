"""What was made, measured: the rows of the report, and the pieces of the bundle with their figures."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from inference_core.confidence import softmax
from inference_core.engine import Engine
from inference_core.manifest import Calibration, Certificate, CurvePoint
from inference_core.qualify import qualify
from inference_core.tensors import Tensors
from inference_core.trust import sha256
from toolchain.calibrate import Calibrated, Curve, confidences, curve, expected_calibration_error, losses
from toolchain.certify import Certified
from toolchain.cuts import Surveyed, compressed_bytes
from toolchain.forms import Form, Forms
from toolchain.graph import Graph
from toolchain.package import CutPieces, OnnxFile, Pieces
from toolchain.page import page
from toolchain.pair import Edge, Kept, Part
from toolchain.parts import Parts
from toolchain.provenance import provenance
from toolchain.recipe import Recipe
from toolchain.report import CutRow, ExitRow, FormRow, PairRow, Report, Verdict
from toolchain.runs import CPU, Latency, accuracy, agreement, latencies, run

_THREADS = (1, 2)


@dataclass(frozen=True)
class Made:
    """What the stages made. `stored` is the full model as it is shipped."""

    graph: Graph
    stored: bytes
    forms: Forms
    surveyed: tuple[Surveyed, ...]
    kept: Mapping[str, Kept]
    edge: Edge
    exits: tuple[ExitRow, ...]
    calibrated: Calibrated
    certified: Certified

    @property
    def shipped(self) -> dict[str, Form]:
        """The variants of the bundle: the one that is served, and all others that are not refused.

        Without FP32 where FP16 stands in for it, and without dynamic INT8 where static stands in for it.
        """
        allowed = {name: form for name, form in self.edge.forms.items() if not form.refused}
        spare = {name for name, better in (("fp32", "fp16"), ("int8-dynamic", "int8")) if better in allowed}
        return {name: form for name, form in allowed.items() if name not in spare or form is self.edge.form}


def measure(
    recipe: Recipe, made: Made, certification: Part, test: Part, parts: Parts
) -> tuple[Pieces, Report]:
    """The pieces of the bundle and its report, measured on the `test` part of `parts`.

    The curve is of the `certification` part. Raises `ModelError` when a file cannot be run within the
    limits of `qualify`.
    """
    times = _time(made, test)
    rows = _form_rows(recipe, made, test, times)
    shown = _curve(made, certification)
    cuts = _cut_rows(made, test, times)
    report = Report(
        model=recipe.model,
        version=recipe.version,
        reference=_reference(recipe),
        made=provenance(recipe),
        data=_sizes(recipe, parts),
        notes=(*made.graph.notes, *_failed(made)),
        forms=tuple(rows),
        layers=made.forms.layers,
        cuts=cuts,
        exits=made.exits,
        calibration=made.calibrated,
        curve=shown,
        certificate=made.certified,
        test=_pair(made, test, parts),
    )
    return _pieces(recipe, made, report, test), report


def _reference(recipe: Recipe) -> Any:
    return "full" if recipe.samples.classes is None else "labels"


def _models(made: Made) -> dict[str, Form]:
    """Every form that is measured, by its name: those that the edge may serve, and all others that run."""
    forms = {**made.forms.forms, **made.edge.forms}
    return {name: form for name, form in forms.items() if form.data}


def _failed(made: Made) -> tuple[str, ...]:
    """A line for each form that could not be made or run, so that there is nothing to measure."""
    return tuple(
        f"{name} could not be made: {form.refused}"
        for name, form in made.forms.forms.items()
        if not form.data
    )


def _time(made: Made, test: Part) -> dict[str, Latency]:
    """Latencies by "name/threads" of all forms and the full model, and of "name/head" and "name/tail"."""
    start = {made.graph.input.name: test.inputs[:1]}
    calls: dict[str, Callable[[], object]] = {}
    models = {name: form.data for name, form in _models(made).items()} | {"full": made.stored}
    for name, data in models.items():
        for threads in _THREADS:
            engine = Engine(data, name=name, threads=threads, providers=CPU)
            calls[f"{name}/{threads}"] = partial(engine.run, start)
    for name, cut in made.kept.items():
        head, tail = cut.halves.head, cut.halves.tail
        first, second = Engine(head, name="head", providers=CPU), Engine(tail, name="tail", providers=CPU)
        calls[f"{name}/head"] = partial(first.run, start)
        calls[f"{name}/tail"] = partial(second.run, first.run(start))
    return latencies(calls)


def _form_rows(recipe: Recipe, made: Made, test: Part, times: Mapping[str, Latency]) -> list[FormRow]:
    precision = "fp16" if recipe.half else "fp32"
    stored = Form("full", precision, "as it is shipped, for the cloud", made.stored)  # type: ignore[arg-type]
    rows = [_form_row(made, "full", stored, test, times)]
    own = "edge" if recipe.edge is not None else "full"
    for name, form in _models(made).items():
        rows.append(_form_row(made, "edge" if name in made.edge.forms else own, form, test, times))
    return rows


def _form_row(made: Made, model: Any, form: Form, test: Part, times: Mapping[str, Latency]) -> FormRow:
    start: Tensors = {made.graph.input.name: test.inputs[:1]}
    logits = test.logits(form.data, made.graph.output.name)
    verdict: Verdict = "measured"
    if form.refused:
        verdict = "refused"
    elif form is made.edge.form:
        verdict = "served"
    elif form.name in made.shipped or form.name == "full":
        verdict = "shipped"
    return FormRow(
        model=model,
        name=form.name,
        precision=form.precision,
        method=form.method,
        bytes=len(form.data),
        memory_bytes=qualify(form.data, start, name=form.name).memory_bytes,
        one_thread=times[f"{form.name}/1"],
        two_threads=times[f"{form.name}/2"],
        accuracy=accuracy(logits, test.classes),
        agreement=agreement(logits, test.full),
        loss=form.loss,
        verdict=verdict,
        reason=form.refused,
        in_float=form.in_float,
    )


def _curve(made: Made, part: Part) -> Curve:
    logits = part.logits(made.edge.form.data, made.graph.output.name)
    confidence = confidences(logits, made.calibrated.temperature, made.calibrated.scorer)
    return curve(confidence, logits, part.full, part.classes)


def _cut_rows(made: Made, test: Part, times: Mapping[str, Latency]) -> tuple[CutRow, ...]:
    names = {cut.place.tensors: name for name, cut in made.kept.items()}
    rows = []
    for one in made.surveyed:
        name = names.get(one.place.tensors)
        place = one.place
        figures = (place.head_share, one.raw, one.stored, one.compressed)
        if name is None:
            rows.append(CutRow(place.name, place.tensors, *figures, one.head_ms, one.tail_ms, False))
            continue
        halves = made.kept[name].halves
        head, tail = (Engine(half, name=name) for half in (halves.head, halves.tail))
        features = run(head, {made.graph.input.name: test.inputs})
        share = agreement(run(tail, features)[made.graph.output.name], test.full)
        both = times[f"{name}/head"].p50, times[f"{name}/tail"].p50
        rows.append(CutRow(name, place.tensors, *figures, *both, True, halves.precision, share))
    return tuple(rows)


def _pair(made: Made, test: Part, parts: Parts) -> PairRow:
    logits = test.logits(made.edge.form.data, made.graph.output.name)
    rule = made.calibrated
    escalated = confidences(logits, rule.temperature, rule.scorer) < made.certified.threshold
    edge, full = logits.argmax(axis=1), test.full.argmax(axis=1)
    answers = np.where(escalated, full, edge)
    lost = losses(logits, test.full, test.classes) & ~escalated
    probabilities = softmax(logits, rule.temperature).max(axis=1)
    right, full_right = float((answers == test.classes).mean()), float((full == test.classes).mean())
    return PairRow(
        samples=len(test),
        threshold=made.certified.threshold,
        escalated=float(escalated.mean()),
        accuracy=right,
        full_accuracy=full_right,
        edge_accuracy=float((edge == test.classes).mean()),
        gap=full_right - right,
        risk=float(lost.mean()),
        agreement=float((answers == full).mean()),
        ece=expected_calibration_error(probabilities, edge == test.classes),
        input_bytes=made.graph.input.bytes,
        compressed_bytes=compressed_bytes(test.inputs),
        image_bytes=parts.test.encoded_bytes,
    )


def _sizes(recipe: Recipe, parts: Parts) -> dict[str, Any]:
    return {
        "calibration": len(parts.calibration),
        "certification": len(parts.certification),
        "test": len(parts.test),
        "skipped": list(recipe.samples.skipped),
    }


def _pieces(
    recipe: Recipe,
    made: Made,
    report: Report,
    test: Part,
) -> Pieces:
    rows = {row.name: row for row in report.forms}
    cuts = {row.name: row for row in report.cuts}
    edge, graph = made.edge, made.graph
    return Pieces(
        model=recipe.model,
        version=recipe.version,
        input=graph.input,
        output=graph.output,
        input_range=(float(test.inputs.min()), float(test.inputs.max())),
        preprocess=recipe.preprocess,
        labels=recipe.labels,
        reference=report.reference,
        full=_file(made.stored, rows["full"]),
        variants={
            name: _file(form.data, rows[name], edge.cut if form is edge.form else None)
            for name, form in made.shipped.items()
        },
        edge=edge.form.name,
        cuts={
            name: CutPieces(
                cut.halves.head, cut.halves.tail, cut.halves.boundary,
                cuts[name].agreement, cuts[name].head_ms, cuts[name].tail_ms,
            )
            for name, cut in made.kept.items()
        },
        calibration=_calibration(made, report),
        report=report.as_json(),
        page=page(report),
    )  # fmt: skip


def _file(data: bytes, row: FormRow, cut: str | None = None) -> OnnxFile:
    return OnnxFile(data, row.precision, row.accuracy, row.one_thread.p50, cut)


def _calibration(made: Made, report: Report) -> Calibration:
    certified = made.certified
    return Calibration(
        scorer=made.calibrated.scorer,
        temperature=made.calibrated.temperature,
        threshold=certified.threshold,
        samples=made.calibrated.samples,
        ece=report.test.ece,
        curve=tuple(CurvePoint(**asdict(row)) for row in report.curve.rows),
        certificate=Certificate(
            bounds=certified.bounds,
            bound=certified.bound,
            confidence=certified.confidence,
            samples=certified.samples,
            method=certified.method,
            digests=(sha256(made.edge.form.data), sha256(made.stored)),
            observed=certified.observed,
            escalated=certified.escalated,
            threshold=certified.threshold,
        ),
    )
