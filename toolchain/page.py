"""`report.html`: a report as a page that a person reads, in one file that loads nothing from anywhere.

Text is escaped by the template, `page.html.j2`. Plots are SVG inside the page; their colours are names that
its style sheet gives values to, one set for light and one for dark.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from toolchain.calibrate import Curve
from toolchain.inspection import certificate_words, milliseconds, percent, size
from toolchain.report import CutRow, PairRow, Report

TEMPLATE = "page.html.j2"
SHOWN = 20  # layers and skipped items before the rest is folded away

_NAME = 16  # letters of a name in a plot
_RIGHT = 0.6  # of the width, beyond which a name stands to the left of its point
_WIDE = 500  # from the least to the most bytes, for labels at powers of ten only
_SIZE = (5.0, 3.7)  # inches, at 72 points: so wide as a phone, where letters keep their size
# Stand-ins for the colours of the style sheet, which Matplotlib does not know.
_COLORS = {name: f"#0{at}0{at}0{at}" for at, name in enumerate(("ink", "soft", "line", "a", "b", "c"), 1)}
_INK, _SOFT, _LINE, _A, _B, _C = _COLORS.values()
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tandem",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """An SVG element, what stands over it, and what it shows in words."""

    svg: str
    title: str
    alt: str


def page(report: Report) -> str:
    """The text of `report.html`; the same report gives the same text."""
    edges = [form for form in report.forms if form.model == "edge"]
    fulls = [form for form in report.forms if form.model == "full"]
    with _drawing():
        curves, places = _curves(report), _places(report.cuts, report.test)
    text = _environment().get_template(TEMPLATE).render(
        report=report,
        test=report.test,
        by_labels=report.reference == "labels",
        served=next((form for form in edges if form.verdict == "served"), None),
        exit=next((row for row in report.exits if row.chosen), None),
        certificate=report.certificate and certificate_words(report.certificate, report.reference),
        forms={"Edge model": edges, "Full model": fulls},
        in_float={name for form in report.forms for name in form.in_float},
        widest=max((layer.error for layer in report.layers), default=0.0) or 1.0,
        curves=curves,
        places=places,
        facts={"Data": list(_flat(report.data)), "How it was made": list(_flat(report.made))},
        shown=SHOWN,
    )  # fmt: skip
    # Names of files may hold bytes that are no text, which no encoding could write.
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def _drawing() -> Iterator[None]:
    """Inside, plots are drawn in the page's style, whatever the user's own settings of Matplotlib are."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's font draws it
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    for name, wording in {
        "percent": percent,
        "exact": lambda share: f"{100 * share:.6g} %",
        "points": lambda share: f"{round(100 * share, 2) + 0:.2f}".replace("-", "−"),
        "size": size,
        "ms": milliseconds,
        "count": lambda number: f"{number:,}",
        "threshold": lambda value: f"{value:.4g}",
    }.items():
        environment.filters[name] = lambda value, wording=wording: wording(value).replace(
            " ", "\N{NO-BREAK SPACE}"
        )
    return environment


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, list[str]]]:
    """The entries of `values`, nested ones with the names above them, each as a list of texts."""
    for key, value in values.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, list | tuple):
            yield name, [str(each) for each in value]
        elif isinstance(value, bool) or value is None:
            yield name, ["none" if value is None else "yes" if value else "no"]
        elif isinstance(value, int) and name.endswith(" bytes"):
            yield name.removesuffix(" bytes"), [size(value)]
        else:
            yield name, [str(value)]


def _curves(report: Report) -> list[Plot]:
    """Accuracy against the share escalated, and agreement, unless the full model is right by definition."""
    rows = report.curve.rows
    if not rows:
        return []
    plots = [_accuracy(report.curve, report.test, report.reference == "labels")]
    return [*plots, _agreement(report.curve, report.test)] if report.reference == "labels" else plots


def _accuracy(curve: Curve, test: PairRow, by_labels: bool) -> Plot:
    figure, axes = _axes("escalated to the full model", "accuracy" if by_labels else "agreement with it")
    escalated = [row.escalated for row in curve.rows]
    accuracy = [row.accuracy for row in curve.rows]
    full = _full_level(curve, test)
    axes.axhline(full, color=_INK, linewidth=1, linestyle=(0, (6, 3)), label=f"full model {percent(full)}")
    axes.plot(escalated, curve.oracle, color=_C, linestyle="-.", label="best possible choice")
    axes.plot(escalated, curve.random, color=_SOFT, linestyle=":", label="random choice")
    axes.plot(escalated, accuracy, color=_A, linewidth=2.2, label="the pair")
    at = _mark(axes, curve, accuracy, test.threshold, (test.escalated, test.accuracy))
    _finish(figure, axes)
    title = "Accuracy of the pair" if by_labels else "Agreement of the pair with the full model"
    return Plot(
        _svg(figure, "accuracy"),
        title,
        f"{title} against the share escalated, on the certification part: {percent(accuracy[0])} when the "
        f"edge answers everything, {percent(at[1])} at the chosen threshold with {percent(at[0])} escalated, "
        f"{percent(full)} for the full model alone.",
    )


def _agreement(curve: Curve, test: PairRow) -> Plot:
    figure, axes = _axes("escalated to the full model", "same class as the full model")
    agreement = [row.agreement for row in curve.rows]
    axes.plot([row.escalated for row in curve.rows], agreement, color=_A, linewidth=2.2, label="the pair")
    at = _mark(axes, curve, agreement, test.threshold, (test.escalated, test.agreement))
    _finish(figure, axes)
    title = "Agreement of the pair with the full model"
    return Plot(
        _svg(figure, "agreement"),
        title,
        f"{title} against the share escalated, on the certification part: {percent(agreement[0])} when the "
        f"edge answers everything, {percent(at[1])} at the chosen threshold.",
    )


def _full_level(curve: Curve, test: PairRow) -> float:
    """The full model's accuracy on the certification part: where the line of random choice ends."""
    first, last = curve.rows[0], curve.rows[-1]
    if last.escalated <= first.escalated:
        return test.full_accuracy
    slope = (curve.random[-1] - curve.random[0]) / (last.escalated - first.escalated)
    return min(1.0, curve.random[0] + slope * (1 - first.escalated))


def _mark(
    axes: Axes, curve: Curve, values: list[float], threshold: float, test: tuple[float, float]
) -> tuple[float, float]:
    """Marks the threshold on the curve of `values`, and what the test part gave; the former's place."""
    thresholds = [row.threshold for row in curve.rows]
    at = float(np.interp(threshold, thresholds, [row.escalated for row in curve.rows]))
    value = float(np.interp(threshold, thresholds, values))
    axes.axvline(at, color=_B, linewidth=1)
    axes.plot([at], [value], "o", color=_B, markersize=8, label=f"threshold {threshold:.3g}")
    axes.plot(*test, "D", color=_INK, fillstyle="none", markersize=7, label="on the test part", clip_on=False)
    return at, value


def _places(cuts: Sequence[CutRow], test: PairRow) -> Plot | None:
    if not cuts:
        return None
    figure, axes = _axes("work done by the head", "sent up for one sample")
    levels = {
        f"input tensor, {size(test.input_bytes)}": (float(test.input_bytes), "-."),
        f"behind zstd, {size(test.compressed_bytes)}": (float(test.compressed_bytes), ":"),
    }
    if test.image_bytes is not None:
        levels[f"encoded image, {size(test.image_bytes)}"] = (test.image_bytes, "--")
    for label, (value, dashes) in levels.items():
        axes.axhline(value, color=_C, linestyle=dashes, label=label)
    kept, others = [row for row in cuts if row.kept], [row for row in cuts if not row.kept]
    for rows, color, points, label in ((others, _SOFT, 16, "other places"), (kept, _B, 50, "kept")):
        if rows:
            heights = [max(1, row.compressed) for row in rows]
            axes.scatter([row.head_share for row in rows], heights, points, color, label=label, zorder=points)
    for row in kept:
        side = -1 if row.head_share > _RIGHT else 1
        place = (row.head_share, max(1, row.compressed))
        align = "left" if side > 0 else "right"
        axes.annotate(_short(row.name), place, (side * 7, 5), textcoords="offset points", ha=align)
    _in_bytes(axes, [value for value, _ in levels.values()] + [row.compressed for row in cuts])
    _finish(figure, axes)
    named = [
        f"{row.name} ({size(row.compressed)} after {percent(row.head_share)} of the work)" for row in kept
    ]
    return Plot(
        _svg(figure, "places"),
        "Bytes sent up against work done on the edge",
        f"Compressed bytes at {len(cuts)} places where the full model can be cut; "
        f"kept: {', '.join(named) or 'none'}; {', '.join(levels)}.",
    )


def _in_bytes(axes: Axes, values: Sequence[float]) -> None:
    """Makes the upright axis one of bytes, logarithmic, with enough labels whatever `values` span."""
    axes.set_yscale("log")
    wide = max(values) > _WIDE * max(1.0, min(values))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value).replace(".0 ", " ")))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    """An empty plot of shares."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up, xlim=(-0.03, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> None:
    """The legend goes above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2)


def _svg(figure: Figure, name: str) -> str:
    """`figure` as an SVG element in the page's colours; `name` keeps its ids apart from other plots'."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    width, height = (round(72 * inches) for inches in _SIZE)
    text = re.sub(r"^<svg[^>]*>", f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">', text)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", lambda tag: _ours(tag.group(), name), text)


def _ours(tag: str, name: str) -> str:
    """A tag that Matplotlib wrote, with the plot's `name` in its ids and the page's colours."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    for color, value in _COLORS.items():
        tag = tag.replace(value, f"var(--{color})")
    return tag
