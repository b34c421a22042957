"""From one full ONNX model and data to a certified bundle: each stage in turn, each in its own module.

Check, quantize, cut, grow exits, choose what the edge serves, calibrate, certify, measure, package. The
same recipe gives the same bundle, timings and memory aside.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_core.bundle import Bundle
from inference_core.errors import InvalidInput, ModelError
from toolchain.calibrate import Calibrated, calibrate, confidences, losses
from toolchain.certify import (
    USEFUL_SHARE,
    Certified,
    candidates,
    certifiable_risk,
    certify_escalation,
    certify_gap,
    samples_needed,
    smallest_gap,
)
from toolchain.cuts import Place, Surveyed, best, find_places, survey
from toolchain.forms import Forms, Judge, is_faster, make_forms
from toolchain.graph import Graph, align
from toolchain.measure import Made, measure
from toolchain.package import check_free, package
from toolchain.pair import LEAST_ANSWERED, MOST_HEAD, Edge, Kept, Part, grow_exits, serve_form
from toolchain.parts import partition
from toolchain.plausibility import check_plausible
from toolchain.recipe import Exits, Recipe, Targets
from toolchain.report import ExitRow, Report
from toolchain.runs import run_model
from toolchain.samples import Samples
from toolchain.split import Split, split
from toolchain.storage import half_weights

_RANGE_SAMPLES = 256  # at most, from which activation ranges are taken
_RANGE_ELEMENTS = 1 << 23  # of all their inputs together
_CHOICE_SAMPLES = 1000  # of a part, at most, on which forms and cuts are chosen
_SAFETY = 0.002  # of agreement, on top of what a cut must keep, so that unseen samples keep it too
_SHOWN = 20  # places that a refusal names
_THREADS = os.cpu_count() or 1
_log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The bundle, and what was measured while it was made."""

    bundle: Bundle
    report: Report


def prepare(recipe: Recipe, folder: Path, *, replace_folder: bool = False, say: Say = _log.info) -> Prepared:
    """Make the bundle `folder` from `recipe`; `say` is told each stage in one line.

    Raises `ModelError` when the models do not fit together or a cut that was asked for changes too many
    answers, `InvalidInput` for data that does not fit or a gap that no threshold can keep, and
    `BundleError` when `folder` exists and is not to be replaced. Nothing is left behind then.
    """
    check_free(folder, replace=replace_folder)  # now, and not after minutes of work
    graph = recipe.full
    say(f"checked: {graph.parameters:,} parameters, " + "; ".join((f"opset {graph.opset}", *graph.notes)))
    parts = partition(recipe.samples, recipe.seed, test=recipe.test)
    _check_enough(len(parts.certification), recipe.targets)
    places = _find_places(recipe, parts.calibration)
    stored = half_weights(graph.data) if recipe.half else graph.data
    calibration = _answer(stored, parts.calibration)
    if recipe.samples.classes is not None:
        check_plausible(calibration.full, calibration.classes)
    certification, test = _answer(stored, parts.certification), _answer(stored, parts.test)
    say(f"parted: {len(calibration)} to calibrate, {len(certification)} to certify, {len(test)} to test")
    forms = _make_forms(recipe, graph, calibration, test, say)
    surveyed, kept = _make_cuts(recipe, graph, calibration, places, say)
    edge, exits = _choose_edge(recipe, graph, forms, kept, calibration, len(certification))
    say(f"chosen: the edge serves {edge.form.name}, {edge.form.method}")
    calibrated, certified = _certify(recipe, graph, edge, calibration, certification)
    say(
        f"certified: {certified.bounds} <= {certified.bound:.2%} at {certified.confidence:.0%} confidence; "
        f"threshold {certified.threshold:.4f}, {certified.escalated:.1%} escalated"
    )
    made = Made(graph, stored, forms, tuple(surveyed), kept, edge, exits, calibrated, certified)
    pieces, report = measure(recipe, made, certification, test, parts)
    return Prepared(package(pieces, folder, replace=replace_folder), report)


def _check_enough(samples: int, targets: Targets) -> None:
    """Raise `InvalidInput` when so many certification samples cannot do, whatever they show."""
    needed = samples_needed(targets.bound, targets.confidence)
    if samples < needed:
        what = "gap" if targets.budget is None else "budget"
        raise InvalidInput(
            f"a {what} of {targets.bound:g} cannot be certified at confidence {targets.confidence:g}: that "
            f"takes at least {needed} certification samples, and the data has {samples}, which can certify "
            f"{math.ceil(1000 * smallest_gap(samples, targets.confidence)) / 1000:g} at best"
        )


def _answer(model: bytes, samples: Samples) -> Part:
    """`samples` with the answers of the full model, which are right where there are no labels."""
    logits = run_model(model, samples.inputs, _THREADS)
    classes = logits.argmax(axis=1) if samples.classes is None else samples.classes
    return Part(samples.inputs, classes, logits)


def _make_forms(recipe: Recipe, graph: Graph, calibration: Part, test: Part, say: Say) -> Forms:
    """The forms of the model that the edge may serve as it is."""
    model = graph.data if recipe.edge is None else align(recipe.edge, graph).data
    judged = [(part.inputs[:_CHOICE_SAMPLES], part.classes[:_CHOICE_SAMPLES]) for part in (calibration, test)]
    judge = Judge(model, judged, recipe.targets.max_loss)
    forms = make_forms(model, _for_ranges(calibration), judge)
    for form in forms.forms.values():
        verdict = f"refused: {form.refused}" if form.refused else f"loses {100 * form.loss:.2f} points"
        say(f"quantized: {form.name}, {form.method}, {len(form.data):,} bytes, {verdict}")
    return forms


def _find_places(recipe: Recipe, calibration: Samples) -> list[Place]:
    """Every place to cut at, if all that were asked for are among them."""
    places = find_places(recipe.full.data, calibration.inputs[:1], all_sizes=recipe.cuts is not None)
    for name, tensors in (recipe.cuts or {}).items():
        _place(places, name, tensors)
    return places


def _make_cuts(
    recipe: Recipe, graph: Graph, calibration: Part, places: list[Place], say: Say
) -> tuple[list[Surveyed], dict[str, Kept]]:
    """Every place to cut at, and those whose halves are kept: the ones asked for, or the best."""
    surveyed = survey(graph.data, places, calibration.inputs)
    wanted = {one.place.name: one.place for one in best(surveyed)}
    if recipe.cuts is not None:
        wanted = {name: _place(places, name, tensors) for name, tensors in recipe.cuts.items()}
    least = 1 - recipe.targets.max_change
    kept: dict[str, Kept] = {}
    for name, place in wanted.items():
        halves = split(
            graph.data, place.tensors, _for_ranges(calibration), calibration.inputs, least + _SAFETY
        )
        if halves.agreement >= least:
            kept[name] = Kept(_halved(halves) if recipe.half else halves, place)
        elif recipe.cuts is not None:
            raise ModelError(
                f"cut {name!r} agrees with the full model on {halves.agreement:.2%} of the samples, "
                f"the limit is {least:.2%}"
            )
    say(f"cut: {len(surveyed)} places, kept {', '.join(kept) or 'none'}")
    return surveyed, kept


def _halved(halves: Split) -> Split:
    """Weights in 16 bits: before exits are grown, which have to give the same features as the head."""
    return replace(halves, head=half_weights(halves.head), tail=half_weights(halves.tail))


def _place(places: list[Place], name: str, tensors: tuple[str, ...]) -> Place:
    found = next((place for place in places if set(place.tensors) == set(tensors)), None)
    if found is None:
        shown = ["+".join(place.tensors) for place in places[:_SHOWN]]
        known = "; ".join([*shown, "..."] if len(places) > _SHOWN else shown) or "nothing"
        raise ModelError(f"cut {name!r}: the model cannot be cut at {'+'.join(tensors)}, only at: {known}")
    return found


def _choose_edge(
    recipe: Recipe, graph: Graph, forms: Forms, kept: dict[str, Kept], calibration: Part, certified_on: int
) -> tuple[Edge, tuple[ExitRow, ...]]:
    """An early exit where one is faster than the best form and there is no edge model, else that form."""
    served = serve_form(forms, calibration, graph.output.name)
    if recipe.edge is not None or recipe.exits is Exits.NEVER:
        return served, ()
    targets = recipe.targets
    risk = certifiable_risk(targets.gap, certified_on, targets.confidence)
    insist = recipe.exits is Exits.ALWAYS
    least = USEFUL_SHARE if insist else LEAST_ANSWERED
    best_exit, rows = grow_exits(kept, graph, calibration, risk, least=least)
    if best_exit is None and insist:
        raise ModelError(_no_exit(kept, rows, least, targets.gap))
    wanted = best_exit is not None and (
        insist or is_faster(best_exit.form, served.form, calibration.inputs[:1])
    )
    chosen = best_exit if best_exit is not None and wanted else served
    return chosen, tuple(replace(row, chosen=row.cut == chosen.cut) for row in rows)


def _no_exit(kept: dict[str, Kept], rows: tuple[ExitRow, ...], least: float, gap: float) -> str:
    """Why there is no early exit, and what might help."""
    if rows:
        seen = "; ".join(f"{row.cut} answers {row.answered:.0%}" for row in rows)
        return f"no early exit answers {least:.0%} of the samples with a gap of {gap:.2%}: {seen}"
    late = ", ".join(f"{name} at {cut.place.head_share:.0%}" for name, cut in kept.items())
    return (
        f"there is no cut to exit at within the first {MOST_HEAD:.0%} of the work"
        + (f", only {late}" if late else "")
        + "; name an earlier one with --cut NAME=TENSOR, or give more data"
    )


def _certify(
    recipe: Recipe, graph: Graph, edge: Edge, calibration: Part, certification: Part
) -> tuple[Calibrated, Certified]:
    """Calibration on the calibration part, the threshold on the certification part."""
    targets, output = recipe.targets, graph.output.name
    calibrated = calibrate(edge.seen, calibration.full, calibration.classes)
    rule = (calibrated.temperature, calibrated.scorer)
    thresholds = candidates(confidences(edge.seen, *rule))
    logits = certification.logits(edge.form.data, output)
    confidence = confidences(logits, *rule)
    lost = losses(logits, certification.full, certification.classes)
    bound, level = targets.bound, targets.confidence
    certify = certify_gap if targets.budget is None else certify_escalation
    try:
        return calibrated, certify(confidence, lost, thresholds, bound, level)
    except InvalidInput as error:
        if edge.cut is None:
            raise
        advice = "the edge would exit early; --exit never lets it serve a form of the whole model"
        raise InvalidInput(f"{error}; {advice}") from error


def _for_ranges(calibration: Part) -> NDArray[np.generic]:
    """A few inputs, spread over the part, whose activations fit into memory."""
    count = min(_RANGE_SAMPLES, max(8, _RANGE_ELEMENTS // calibration.inputs[0].size), len(calibration))
    return calibration.inputs[:count]
