"""What `tandem inspect` shows of a bundle on one screen, and how figures are worded for people."""

import math
import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inference_core.bundle import Bundle
from inference_core.manifest import Certificate, Cut, Manifest, TensorInfo, Variant
from inference_core.preprocess import Preprocess
from toolchain.certify import ESCALATION, GAP, Certified

VOIDED = "It holds only for inputs like those of the certification part; drift voids it."

_LABELS = 48  # characters of them that are shown
_KILO = 1000
_UNITS = ("B", "kB", "MB", "GB", "TB")


def describe(bundle: Bundle) -> RenderableType:
    """The manifest of `bundle`, for a terminal of 80 columns; no other file is read."""
    manifest = bundle.manifest
    title = Text(f"{manifest.model} version {manifest.version}", style="bold")
    parts: list[RenderableType] = [title, _facts(bundle), Text(), _models(manifest)]
    if manifest.cuts:
        parts += [Text(), _cuts(manifest)]
    return Group(*parts, Text(), _calibration(manifest))


def certificate_words(certificate: Certificate | Certified, reference: str = "labels") -> str:
    """What `certificate` promises, what it rests on and what voids it, in plain sentences.

    `reference` as in the manifest: where the full model's answers were right, it is about those.
    """
    bound, level = _exact(certificate.bound), _exact(certificate.confidence)
    promise = f"at most {bound}: {printable(certificate.bounds)}"
    if certificate.bounds == GAP and reference == "full":
        promise = f"on at most {bound} of inputs the edge answers otherwise than the full model would"
    elif certificate.bounds == GAP:
        points = bound.replace(" %", " point" if bound == "1 %" else " points")
        promise = (
            f"on at most {bound} of inputs the edge gives a wrong answer where the full model would give "
            f"the right one, so the pair's accuracy is at most {points} below the full model's"
        )
    elif certificate.bounds == ESCALATION:
        promise = f"at most {bound} of inputs are escalated"
    seen = []
    if certificate.observed is not None:
        kind = "such answers" if certificate.bounds == GAP else "lost to wrong answers of the edge"
        seen.append(f"{percent(certificate.observed)} {kind}")
    if certificate.escalated is not None:
        seen.append(f"{percent(certificate.escalated)} escalated")
    shown = f"Shown by {certificate.samples:,} certification samples"
    shown += f", with {' and '.join(seen)}." if seen else "."
    return f"With {level} confidence, {promise}. {shown} {VOIDED}"


def percent(share: float) -> str:
    """`share`, 0 to 1, as `98.4 %`; with more digits where else it would read 0 or 100 and is neither."""
    digits = 1
    while digits < 4 and share not in (0, 1) and round(100 * share, digits) in (0, 100):
        digits += 1
    return f"{100 * share:.{0 if share in (0, 1) else digits}f} %"


def size(count: float) -> str:
    """`count` bytes as `512 B`, `1.2 MB`: thousands, not 1024."""
    if round(count) < _KILO:
        return f"{count:.0f} B"
    value, unit = count / _KILO, 1
    while round(value, 1) >= _KILO and unit < len(_UNITS) - 1:
        value, unit = value / _KILO, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"


def milliseconds(ms: float) -> str:
    """`ms` as `3.4 ms`, to about two digits, `0.021 ms` and `1,234 ms`."""
    return f"{_two_digits(ms)} ms"


def printable(text: str) -> str:
    """`text` from someone's file with what could move a terminal's cursor written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _facts(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    golden = manifest.golden
    table = _grid()
    right = {"labels": "the labels of the data", "full": "the answers of the full model"}
    rows = {
        "digest": bundle.digest,
        "input": f"{_tensor(manifest.input)}, {size(manifest.input.bytes)}",
        "images": _preprocess(manifest.preprocess),
        "labels": _labels(manifest.labels),
        "right": f"{right[manifest.reference]} ({manifest.task})",
        "golden": f"{golden.file}, {size(golden.bytes)}, tolerance {_exact(golden.tolerance)} "
        f"of the largest value, {golden.feature_steps} of uint8",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _models(manifest: Manifest) -> Table:
    measured = "accuracy" if manifest.reference == "labels" else "agreement"
    table = _table("model", "precision", "file", "size", measured, "ms")

    def add(model: str, variant: Variant) -> None:
        known = "" if variant.accuracy is None else percent(variant.accuracy)
        ms = "" if variant.latency_ms is None else _two_digits(variant.latency_ms)
        table.add_row(model, variant.precision, variant.file, size(variant.bytes), known, ms)

    for variant in manifest.variants:
        served = variant.name == manifest.edge
        add(f"edge {variant.name}" + (", served" if served else ""), variant)
    add("full" if manifest.full.name == "full" else f"full {manifest.full.name}", manifest.full)
    return table


def _cuts(manifest: Manifest) -> Table:
    table = _table("cut", "tensors", "size", "agreement", "head ms", "tail ms", "exit", left=2)
    exits = {variant.cut: variant.name for variant in manifest.variants if variant.cut}
    for cut in manifest.cuts:
        agreement = "" if cut.agreement is None else percent(cut.agreement)
        halves = ["" if ms is None else _two_digits(ms) for ms in (cut.head_ms, cut.tail_ms)]
        table.add_row(cut.name, _boundary(cut), size(cut.bytes), agreement, *halves, exits.get(cut.name, ""))
    return table


def _calibration(manifest: Manifest) -> Table:
    rule = manifest.calibration
    confidence = f"{rule.scorer} at temperature {rule.temperature:.3g}"
    error = "" if rule.ece is None else f"; ECE {percent(rule.ece)} on the test part"
    table = _grid()
    always = "" if rule.threshold > 0 else "; so always, and in cascade the cloud is never asked"
    table.add_row("trusted", Text(f"from a confidence of {rule.threshold:.4g} on{always}"))
    table.add_row("judged", Text(f"by {confidence}, fitted on {rule.samples:,} samples{error}"))
    certified = (
        "none" if rule.certificate is None else certificate_words(rule.certificate, manifest.reference)
    )
    table.add_row("certified", Text(certified))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _table(*columns: str, left: int = 3) -> Table:
    """An empty table, its first `left` columns of text."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < left else "right", overflow="fold")
    return table


def _tensor(info: TensorInfo) -> str:
    return f"{printable(info.name)} {info.datatype} {list(info.shape)}"


def _boundary(cut: Cut) -> Text:
    return Text("\n".join(_tensor(info) for info in cut.boundary))


def _preprocess(rules: Preprocess | None) -> str:
    """The rules as one line: size, how it is reached, and the formula for a pixel x."""
    if rules is None:
        return "none: takes tensors only"
    by = 1 / rules.scale
    formula = f"x/{round(by)}" if math.isclose(by, round(by), rel_tol=1e-9) else f"x*{rules.scale:.4g}"
    if any(rules.mean) or any(value != 1 for value in rules.std):
        formula = f"({formula}-{_numbers(rules.mean)})/{_numbers(rules.std)}"
    return f"{rules.color} {rules.width}x{rules.height} {rules.fit} {rules.resample} {formula}"


def _numbers(values: Sequence[float]) -> str:
    texts = [re.sub(r"^(-?)0\.", r"\1.", f"{value:.3g}") for value in values]
    return texts[0] if len(texts) == 1 else f"[{' '.join(texts)}]"


def _labels(labels: Sequence[str]) -> str:
    """How many, and the first ones."""
    shown: list[str] = []
    for label in map(printable, labels):
        if len(", ".join([*shown, label])) > _LABELS:
            break
        shown.append(label)
    text = ", ".join(shown) or printable(labels[0])[:_LABELS]
    return f"{len(labels)}: {text}" + (", ..." if len(shown) < len(labels) else "")


def _two_digits(value: float) -> str:
    digits = 0 if value >= _KILO / 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def _exact(share: float) -> str:
    """A share that someone chose: as they wrote it."""
    return f"{100 * share:.6g} %"
