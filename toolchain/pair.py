"""Which model the edge serves: a form of the edge model, of the full one, or an early exit of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference_core.engine import Engine
from toolchain.calibrate import calibrate, confidences, losses
from toolchain.cuts import Place
from toolchain.exits import Exit, grow_exit
from toolchain.forms import Form, Forms, choose_served
from toolchain.graph import Graph
from toolchain.report import ExitRow
from toolchain.runs import Classes, Logits, accuracy, agreement, run
from toolchain.split import Split

EXIT = "exit"  # the name of the variant
LEAST_ANSWERED = 0.55  # of the samples, for an exit worth having: unseen ones may be fewer
MOST_HEAD = 0.8  # of the multiply-adds, beyond which an exit saves nothing
_LEAST_SAMPLES = 16  # of which a quarter is held back


@dataclass(frozen=True)
class Part:
    """One part of the data: inputs `[n, ...]`, what is right `[n]`, and the full model's logits `[n, k]`."""

    inputs: NDArray[np.generic]
    classes: Classes
    full: Logits

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, rows: NDArray[np.int64]) -> "Part":
        """Those rows."""
        return Part(self.inputs[rows], self.classes[rows], self.full[rows])

    def logits(self, model: bytes, output: str, threads: int = 1) -> Logits:
        """What `model` answers to the inputs, under the name `output`."""
        engine = Engine(model, name="model", threads=threads)
        return run(engine, {engine.inputs[0].name: self.inputs})[output]


@dataclass(frozen=True)
class Edge:
    """What the edge serves, `form`, and every other form of the same model, by name.

    `cut` is where it exits early, or None. `seen` are its logits `[n, k]` on the calibration part; of an
    exit, those that it was not taught to give.
    """

    form: Form
    forms: Mapping[str, Form]
    cut: str | None
    seen: Logits


@dataclass(frozen=True)
class Kept:
    """A cut in the bundle: its halves, and where it is."""

    halves: Split
    place: Place


def serve_form(forms: Forms, calibration: Part, output: str) -> Edge:
    """The edge serves the best form of its own model, or of the full one."""
    served = choose_served(forms.forms, calibration.inputs[:1])
    form = forms.forms[served]
    return Edge(form, forms.forms, None, calibration.logits(form.data, output))


def grow_exits(
    kept: Mapping[str, Kept], graph: Graph, calibration: Part, gap: float, *, least: float = LEAST_ANSWERED
) -> tuple[Edge | None, tuple[ExitRow, ...]]:
    """An early exit at each cut in `kept` whose head does at most `MOST_HEAD` of the work, and the best.

    That is the one with the least work that answers `LEAST_ANSWERED` of the samples while losing at most
    `gap` of them; without such a one, the one that answers most, if that is at least `least`. A few
    samples teach nothing: then there is none.
    """
    if len(calibration) < _LEAST_SAMPLES:
        return None, ()
    rows: dict[str, ExitRow] = {}
    grown: dict[str, Exit] = {}
    for name, cut in sorted(kept.items(), key=lambda item: item[1].place.head_share):
        if cut.place.head_share > MOST_HEAD:
            continue
        halves = cut.halves
        one = grow_exit(halves.head, halves.boundary, calibration.inputs, calibration.full, graph.output.name)
        right, same = accuracy(one.logits, calibration.classes), agreement(one.logits, calibration.full)
        rows[name] = ExitRow(name, right, same, _answered(one.logits, calibration, gap), False)
        grown[name] = one
    good = [name for name, row in rows.items() if row.answered >= LEAST_ANSWERED]
    chosen = good[0] if good else max(rows, key=lambda name: rows[name].answered, default=None)
    if chosen is None or rows[chosen].answered < least:
        return None, tuple(rows.values())
    form = Form(
        EXIT,
        kept[chosen].halves.precision,
        f"head at {chosen}, pooling and a linear layer in FP32",
        grown[chosen].model,
    )
    rows[chosen] = replace(rows[chosen], chosen=True)
    return Edge(form, {EXIT: form}, chosen, grown[chosen].logits), tuple(rows.values())


def _answered(logits: Logits, held: Part, gap: float) -> float:
    """The largest share that can be answered while the risk stays at most `gap`, on these very samples."""
    calibrated = calibrate(logits, held.full, held.classes)
    confidence = confidences(logits, calibrated.temperature, calibrated.scorer)
    order = np.argsort(-confidence, kind="stable")
    risk = np.cumsum(losses(logits, held.full, held.classes)[order]) / len(held)
    return float(np.searchsorted(risk, gap, side="right") / len(held))
