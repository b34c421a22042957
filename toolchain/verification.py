"""What `tandem verify` checks: every file of a bundle, its certificate, and whether data contradicts that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from scipy.stats import binom, fisher_exact

from inference_core.bundle import MANIFEST, Bundle
from inference_core.engine import Engine
from inference_core.errors import BundleError, TandemError
from inference_core.manifest import Certificate, File, Manifest
from toolchain.calibrate import Classes, Flags, Logits, confidences, losses
from toolchain.certify import ESCALATION, GAP
from toolchain.inspection import percent, printable
from toolchain.runs import CPU, accuracy, run
from toolchain.samples import Samples

BESIDE = (MANIFEST, "report.json", "report.html")  # may lie in the folder without being named
_DRIFTED = 0.001  # chance below which a share has changed
_NAMED = 5  # stray files that are listed

Engines = Mapping[str, Engine]  # by the digest of the file


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, whether it is as it must be, and what was found."""

    what: str
    passed: bool
    detail: str


def verify(bundle: Bundle, samples: Samples | None) -> list[Check]:
    """Every check of `bundle`; those that fail do not keep the others from being made.

    Each file must have its size and digest; each ONNX file must keep the rules of `trust`, load and
    reproduce its golden outputs, in this process; the certificate must be of the files that are served.
    With `samples`, as the model takes them, the pair is run on them: it fails when they contradict the
    certificate. Raises `OSError` when the folder cannot be listed.
    """
    engines: dict[str, Engine] = {}
    checks = [_golden(bundle), *(_load(bundle, file, engines) for file in _models(bundle.manifest))]
    checks += _strays(bundle)
    checks.append(_certified_files(bundle.manifest))
    if samples is not None:
        checks += _on_data(bundle.manifest, engines, samples)
    return checks


def render(checks: Sequence[Check]) -> RenderableType:
    """`checks` as a table for a terminal."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        mark = Text("ok", style="green") if check.passed else Text("FAILED", style="bold red")
        table.add_row(mark, Text(printable(check.what)), Text(printable(check.detail)))
    return table


def contradiction(events: int, samples: int, bound: float) -> float:
    """P[Binomial(samples, bound) >= events]: how likely so many are while the rate is the bound.

    The p-value of the exact one-sided test of "the rate is at most `bound`"; small ones contradict it.
    """
    return float(binom.sf(events - 1, samples, bound))


def _models(manifest: Manifest) -> list[File]:
    """Every ONNX file once."""
    halves = [half for cut in manifest.cuts for half in (cut.head, cut.tail)]
    files = (*manifest.variants, manifest.full, *halves)
    return list({(file.file, file.sha256, file.bytes): file for file in files}.values())


def _golden(bundle: Bundle) -> Check:
    golden = bundle.manifest.golden
    try:
        bundle.read(golden)
    except BundleError as error:
        return Check(golden.file, False, str(error))
    return Check(golden.file, True, "size, digest")


def _load(bundle: Bundle, file: File, engines: dict[str, Engine]) -> Check:
    """The check of one ONNX file; those that the data runs through are kept in `engines`."""
    manifest = bundle.manifest
    try:
        engine = bundle.engine(file, threads=1, providers=CPU)
    except BundleError as error:
        return Check(file.file, False, str(error))
    if file.sha256 in (manifest.edge_variant.sha256, manifest.full.sha256):
        engines[file.sha256] = engine
    return Check(file.file, True, "size, digest, rules, loads, golden outputs")


def _strays(bundle: Bundle) -> Iterator[Check]:
    """A remark, not a failure, on what the manifest does not name."""
    named = {*BESIDE, bundle.manifest.golden.file, *(file.file for file in _models(bundle.manifest))}
    found = sorted({path.name for path in bundle.folder.iterdir()} - named)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        yield Check(
            "other files", True, f"not named by the manifest and ignored: {', '.join(found[:_NAMED])}{more}"
        )


def _certified_files(manifest: Manifest) -> Check:
    certificate = manifest.calibration.certificate
    if certificate is None:
        return Check("certificate", True, "none")
    edge, full = manifest.edge_variant, manifest.full
    for what, file, digest in zip(("edge", "full"), (edge, full), certificate.digests, strict=False):
        if file.sha256 != digest:
            return Check("certificate", False, f"of another {what} model than {file.file}: {digest}")
    if len(certificate.digests) != 2:
        return Check("certificate", False, f"names {len(certificate.digests)} files, not edge and full")
    return Check("certificate", True, f"of {edge.file} and {full.file}")


def _on_data(manifest: Manifest, engines: Engines, samples: Samples) -> Iterator[Check]:
    edge, full = engines.get(manifest.edge_variant.sha256), engines.get(manifest.full.sha256)
    if edge is None or full is None:
        yield Check("data", False, "not looked at: the edge model or the full one is refused")
        return
    if not len(samples):
        yield Check("data", False, "there are no samples")
        return
    inputs, output = {manifest.input.name: samples.inputs}, manifest.output.name
    try:
        answers = [run(engine, inputs, f"running {engine.name}")[output] for engine in (edge, full)]
        seen = _see(manifest, answers[0], answers[1], samples.classes)
    except TandemError as error:
        yield Check("data", False, str(error))
        return
    yield Check("data", True, seen.text)
    yield from _drift(manifest, seen)
    if manifest.calibration.certificate is not None:
        yield _test(manifest.calibration.certificate, seen)


@dataclass(frozen=True)
class _Seen:
    """What the pair did with the data: `escalated` `[n]`, and `lost` `[n]` where the edge answers a loss.

    `right` `[n]` is where the full model is right, None without labels.
    `weaker` says that the certificate is about labels and the data has none, so that `lost` counts more.
    """

    escalated: Flags
    lost: Flags
    right: Flags | None
    weaker: bool
    text: str


def _see(manifest: Manifest, edge: Logits, full: Logits, labels: Classes | None) -> _Seen:
    """By `labels` `[n]` where they are what the bundle was measured by, else by the full model's answers."""
    rule = manifest.calibration
    own = labels if manifest.reference == "labels" else None
    classes: Classes = full.argmax(axis=1) if own is None else own
    lost = losses(edge, full, classes)
    escalated: Flags = confidences(edge, rule.temperature, rule.scorer) < rule.threshold
    pair = np.where(escalated[:, None], full, edge)
    right = "agrees with the full model" if own is None else "is right"
    text = (
        f"{len(classes):,} samples, {percent(float(escalated.mean()))} escalated; the pair {right} on "
        f"{percent(accuracy(pair, classes))}, the edge alone on {percent(accuracy(edge, classes))}"
    )
    if own is not None:
        text += f", the full model alone on {percent(accuracy(full, classes))}"
    right_ones = None if own is None else full.argmax(axis=1) == classes
    weaker = manifest.reference == "labels" and own is None
    return _Seen(escalated, lost & ~escalated, right_ones, weaker, text)


def _drift(manifest: Manifest, seen: _Seen) -> Iterator[Check]:
    """Whether the data is like what was certified, by the two shares that are known of that.

    Fisher's exact test, two-sided, against as many samples as the certification part had. A certificate
    says nothing about inputs that have changed, even where they do not contradict it.
    """
    certificate = manifest.calibration.certificate
    if certificate is None:
        return
    shares = [("drift of escalation", "escalated", seen.escalated, certificate.escalated)]
    if seen.right is not None:
        shares.append(("drift of accuracy", "the full model is right on", seen.right, manifest.full.accuracy))
    for what, name, now, then in shares:
        if then is None:
            continue
        counts = [int(now.sum()), round(then * certificate.samples)]
        table = [counts, [len(now) - counts[0], certificate.samples - counts[1]]]
        p = float(fisher_exact(table).pvalue)
        figures = (
            f"{name} {percent(counts[0] / len(now))}, {percent(then)} when it was certified; p = {p:.2g}"
        )
        if p < _DRIFTED:
            yield Check(what, False, f"the data is not like that of the certificate: {figures}")
        else:
            yield Check(what, True, f"none seen: {figures}")


def _test(certificate: Certificate, seen: _Seen) -> Check:
    """Whether `seen` contradicts `certificate`; what cannot be tested is said, and passes.

    Without labels every answer of the edge that is not the full model's counts as an error. That is never
    less than what was certified by labels, so few of them clear the certificate, but many prove nothing.
    """
    what = "certificate on the data"
    if certificate.bounds not in (GAP, ESCALATION):
        return Check(what, True, f"not tested, it bounds what is unknown here: {certificate.bounds}")
    gap = certificate.bounds == GAP
    events = seen.lost if gap else seen.escalated
    p = contradiction(int(events.sum()), len(events), certificate.bound)
    lost = "answered wrongly by the edge and rightly by the full model"
    if seen.right is None:
        lost = "answered by the edge otherwise than by the full model"
    name = lost if gap else "escalated"
    figures = (
        f"{int(events.sum()):,} of {len(events):,} samples {name}, certified is at most "
        f"{100 * certificate.bound:g} %; p = {p:.2g}"
    )
    if p >= 1 - certificate.confidence:
        return Check(what, True, f"not contradicted: {figures}")
    if gap and seen.weaker:
        return Check(what, True, f"not tested, the data has no labels: at most {figures}")
    return Check(what, False, f"contradicted: {figures}")
