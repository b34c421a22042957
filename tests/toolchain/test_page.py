"""The page: everything of a report is on it, whatever names hold, and it needs nothing but itself."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from inference_core.confidence import Scorer
from toolchain.calibrate import Calibrated, Curve, calibrate, confidences, curve, losses
from toolchain.certify import Certified, candidates, certify_escalation, certify_gap
from toolchain.page import page
from toolchain.report import CutRow, ExitRow, FormRow, PairRow, Report
from toolchain.runs import Latency
from toolchain.sensitivity import Layer

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
EVIL = "<script>alert('x')</script>\"&amp; $\\frac{1$ \udcff 猫"


class Document(HTMLParser):
    """A page taken apart: its tags in order, its text, and whatever does not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> stays open" for tag in self._open]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self._text))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if len(dict(attrs)) < len(attrs):
            self.faults.append(f"<{tag}> says the same twice")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self._text.append(data)


def _logits(seed: int, count: int) -> tuple[Any, Any, Any]:
    """Logits of an edge and of a full model, of ten classes, and the right classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 10, count)
    hard = rng.exponential(1.0, count)[:, None]
    signal = 6 * np.eye(10)[classes]
    shared = rng.normal(size=(count, 10)) * hard
    edge = signal + 1.5 * shared + rng.normal(size=(count, 10)) * hard
    full = signal + 1.2 * shared + 0.4 * rng.normal(size=(count, 10)) * hard
    return edge.astype(np.float32), full.astype(np.float32), classes


@cache
def _pair() -> tuple[Calibrated, Curve, Certified, PairRow]:
    edge, full, classes = _logits(1, 3000)
    rule = calibrate(edge, full, classes)
    confidence = confidences(edge, rule.temperature, rule.scorer)
    drawn = curve(confidence, edge, full, classes)
    thresholds = candidates(confidence)
    edge, full, classes = _logits(2, 5000)
    confidence = confidences(edge, rule.temperature, rule.scorer)
    certified = certify_gap(confidence, losses(edge, full, classes), thresholds, 0.02, 0.95)
    edge, full, classes = _logits(3, 2000)
    escalated = confidences(edge, rule.temperature, rule.scorer) < certified.threshold
    pair = np.where(escalated, full.argmax(axis=1), edge.argmax(axis=1))
    accuracy, best = float((pair == classes).mean()), float((full.argmax(axis=1) == classes).mean())
    test = PairRow(
        samples=2000,
        threshold=certified.threshold,
        escalated=float(escalated.mean()),
        accuracy=accuracy,
        full_accuracy=best,
        edge_accuracy=float((edge.argmax(axis=1) == classes).mean()),
        gap=best - accuracy,
        risk=float((losses(edge, full, classes) & ~escalated).mean()),
        agreement=float((pair == full.argmax(axis=1)).mean()),
        ece=0.0123,
        input_bytes=150528 * 4,
        compressed_bytes=412_000,
        image_bytes=21_345.6,
    )
    return rule, drawn, certified, test


def _form(model: Any, name: str, precision: str, size: int, verdict: Any, **changes: Any) -> FormRow:
    scale = size / 1_000_000
    values = {
        "method": "as it came",
        "memory_bytes": 60_000_000 + 3 * size,
        "one_thread": Latency(round(1.9 * scale, 3), round(2.8 * scale, 3)),
        "two_threads": Latency(round(1.1 * scale, 3), round(3.9 * scale, 3)),
        "accuracy": 0.876,
        "agreement": 0.994,
        "loss": 0.0012,
        "reason": "",
        "in_float": (),
    }
    return FormRow(model, name, precision, bytes=size, verdict=verdict, **{**values, **changes})


def _forms(layers: tuple[Layer, ...]) -> tuple[FormRow, ...]:
    how = "static QDQ per channel, MinMax ranges"
    spared = tuple(layer.name for layer in layers[:4])
    refused = "loses 3.10 points, the limit is 1.00"
    return (
        _form("edge", "fp32", "fp32", 9_100_000, "measured", loss=0.0, agreement=1.0),
        _form("edge", "fp16", "fp16", 4_600_000, "shipped", method="weights in 16 bits, FP32 arithmetic"),
        _form("edge", "int8", "int8", 2_400_000, "refused", method=how, loss=0.031, reason=refused),
        _form("edge", "mixed", "mixed", 2_900_000, "served", method=how, in_float=spared),
        _form("full", "fp32", "fp32", 44_700_000, "served", accuracy=0.9341, loss=0.0, agreement=1.0),
        _form("full", "fp16", "fp16", 22_400_000, "measured", accuracy=0.9342, loss=-0.0001),
    )


def _cuts() -> tuple[CutRow, ...]:
    rows = []
    for at in range(14):
        share = (at + 0.4) / 14
        stored = int(802_816 * 0.68**at)
        kept = at in (2, 6, 9, 12)
        rows.append(
            CutRow(
                name=f"at{100 * share:04.1f}".replace(".", "-"),
                tensors=(f"/layer{at}/Relu_output_0",) + (("/skip",) if at == 9 else ()),
                head_share=share,
                raw=4 * stored,
                stored=stored,
                compressed=int(stored * 0.55 * (1.3 if at % 3 else 0.8)),
                head_ms=14.2 * share,
                tail_ms=14.2 * (1 - share),
                kept=kept,
                precision="int8" if kept else None,
                agreement=0.9975 if kept else None,
            )
        )
    return tuple(rows)


def sample_report() -> Report:
    """A report as an ordinary run makes it, with everything in it."""
    rule, drawn, certified, test = _pair()
    layers = tuple(
        Layer(f"/features/{at}/conv/Conv", "Conv" if at % 5 else "Gemm", 1.8 * 0.86**at) for at in range(34)
    )
    return Report(
        model="street-signs",
        version="2026.11",
        reference="labels",
        made={
            "tandem": "0.1.0",
            "python": "3.11.9",
            "onnxruntime": "1.31.1",
            "machine": {"processor": "x86_64", "cores": 2, "memory_bytes": 8_000_000_000},
            "seed": 0,
            "options": {"gap": 0.02, "confidence": 0.95, "serve": None, "half": False},
        },
        data={
            "source": "signs.zip",
            "calibration": 3000,
            "certification": 5000,
            "test": 2000,
            "skipped": ["stop/broken.png: truncated or damaged (OSError)", "yield/two.webp: 2 frames"],
        },
        notes=("softmax at the end was removed: the output holds logits", "batch axis was freed"),
        forms=_forms(layers),
        layers=layers,
        cuts=_cuts(),
        exits=(ExitRow("at17-1", 0.71, 0.73, 0.41, False), ExitRow("at45-7", 0.86, 0.89, 0.72, True)),
        calibration=rule,
        curve=drawn,
        certificate=certified,
        test=test,
    )


def bare_report() -> Report:
    """A report with nothing that may be missing: tensors without labels, no certificate, cuts or exits."""
    report = sample_report()
    return replace(
        report,
        reference="full",
        made={},
        data={},
        notes=(),
        forms=(),
        layers=(),
        cuts=(),
        exits=(),
        certificate=None,
        test=replace(report.test, image_bytes=None, full_accuracy=1.0),
    )


def evil_report() -> Report:
    """A report in which every text is hostile."""
    report = sample_report()
    served = _form("edge", EVIL, EVIL, 9, "served", method=EVIL, reason=EVIL, in_float=(EVIL,))
    cut = replace(report.cuts[2], name=EVIL, tensors=(EVIL, EVIL), precision=EVIL)
    return replace(
        report,
        model=EVIL,
        version=EVIL,
        made={EVIL: {EVIL: EVIL}},
        data={"skipped": [EVIL] * 50, EVIL: (EVIL,)},
        notes=(EVIL,),
        forms=(served,),
        layers=(Layer(EVIL, EVIL, 0.0),),
        cuts=(cut, replace(cut, kept=False, compressed=0)),
        exits=(ExitRow(EVIL, 1.0, 1.0, 1.0, True),),
        certificate=Certified(EVIL, 0.1, 0.9, 100, EVIL, 0.5, 0.0, 0.5),
    )


@pytest.fixture(scope="module", params=[sample_report, bare_report, evil_report])
def any_report(request: pytest.FixtureRequest) -> Report:
    """A full report, an empty one, a hostile one."""
    made: Report = request.param()
    return made


# ---- what a person reads


def test_the_decision_stands_at_the_top() -> None:
    report = sample_report()
    text = Document(page(report)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.index("No certificate" if report.certificate is None else "Certificate.") < 1000
    top = text[:2000]
    for part in (
        "street-signs",
        "version 2026.11",
        "mixed (2.9 MB, 5.5 ms for one sample on one thread)",
        f"from a confidence of {report.test.threshold:.4g} on",
        f"asked for {100 * report.test.escalated:.1f} % of them",
        f"{round(100 * report.test.gap, 2)} points below the full model",
        "With 95 % confidence, on at most 2 % of inputs",
        "It holds only for inputs like those of the certification part; drift voids it.",
    ):
        assert part in top, part


def test_every_precision_is_in_the_table_with_its_verdict() -> None:
    text = Document(page(sample_report())).text.replace("\N{NO-BREAK SPACE}", " ")
    table = text[text.index("Edge model") : text.index("Layers that INT8 hurts")]
    for part in ("9.1 MB", "fp16", "shipped", "refused loses 3.10 points, the limit is 1.00", "Full model"):
        assert part in table, part
    assert re.search(r"mixed static QDQ.* 2\.9 MB 68\.7 MB 5\.5 ms 8\.1 ms 3\.2 ms 11\.3 ms", table)
    assert "4 layers in float" in table
    assert "44.7 MB 194.1 MB 84.9 ms 125 ms 49.2 ms 174 ms 93.4 % 100 % 0.00 served" in table
    assert "−0.01 measured" in table


def test_layers_cuts_exits_scorers_and_facts_are_listed() -> None:
    text = Document(page(sample_report())).text.replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "/features/3/conv/Conv Conv, left in float",
        "14 more layers",
        "at45-7 kept /layer6/Relu_output_0",
        "/layer9/Relu_output_0, /skip",
        "All 14 places",
        "at45-7 chosen 86.0 % 89.0 % 72.0 %",
        "expected calibration error there from",
        "signs.zip",
        "stop/broken.png: truncated or damaged (OSError)",
        "machine memory 8.0 GB",
        "options serve none",
        "softmax at the end was removed",
    ):
        assert part in text, part
    spared = [tag for tag in Document(page(sample_report())).of("span") if tag.get("class") == "spared"]
    assert len(spared) == 4


def test_the_best_scorer_may_not_be_the_chosen_one() -> None:
    report = sample_report()
    chosen = replace(report, calibration=replace(report.calibration, scorer=Scorer.ENTROPY))
    assert "entropy chosen" in Document(page(chosen)).text


@pytest.mark.parametrize(
    ("gap", "words"), [(0.0031, "0.31 points below"), (-0.0031, "0.31 points above"), (0.0, "as many as")]
)
def test_the_gap_has_a_direction(gap: float, words: str) -> None:
    report = sample_report()
    text = Document(page(replace(report, test=replace(report.test, gap=gap)))).text
    assert f"{words} the full model" in text


def test_a_budget_is_worded_as_one() -> None:
    confidence = np.random.default_rng(5).random(2000)
    lost = np.zeros(2000, np.bool_)
    certified = certify_escalation(confidence, lost, candidates(confidence), 0.3, 0.9)
    text = Document(page(replace(sample_report(), certificate=certified))).text
    assert "With 90 % confidence, at most 30 % of inputs are escalated." in text


def test_plots_say_in_words_what_they_show() -> None:
    labels = [
        tag["aria-label"] for tag in Document(page(sample_report())).of("div") if tag.get("role") == "img"
    ]
    assert len(labels) == 3
    assert all(label and "part" in label for label in labels[:2])
    assert "kept: at17-1 (265.4 kB after 17.1 % of the work)" in str(labels[2])


# ---- what may be missing


def test_what_is_missing_is_said_or_left_out() -> None:
    text = Document(page(bare_report())).text
    for part in ("No certificate.", "The data has no labels", "The full model was not cut."):
        assert part in text, part
    for part in ("Precisions", "Layers that", "Early exits", "Notes", "How it was made", "None"):
        assert part not in text, part


def test_without_labels_there_is_one_curve() -> None:
    document = Document(page(bare_report()))
    assert len(document.of("svg")) == 1
    assert len(Document(page(sample_report())).of("svg")) == 3


@pytest.mark.parametrize("verdict", ["shipped", "measured", "refused"])
def test_an_exit_may_be_all_that_is_served(verdict: Any) -> None:
    report = sample_report()
    forms = tuple(replace(form, verdict=verdict) for form in report.forms)
    assert (
        "The edge answers with the early exit at the cut at45-7"
        in Document(page(replace(report, forms=forms))).text
    )


def test_a_curve_of_one_point_is_drawn() -> None:
    report = sample_report()
    only = Curve(report.curve.rows[:1], report.curve.random[:1], report.curve.oracle[:1])
    assert len(Document(page(replace(report, curve=only))).of("svg")) == 3
    assert len(Document(page(replace(report, curve=Curve((), (), ())))).of("svg")) == 1


def test_cuts_may_all_be_left_out_of_the_bundle() -> None:
    report = sample_report()
    cuts = tuple(replace(cut, kept=False, agreement=None, precision=None) for cut in report.cuts)
    document = Document(page(replace(report, cuts=cuts)))
    assert "None was kept." in document.text
    assert document.faults == []


# ---- the page by itself


def test_it_is_well_formed_and_every_id_is_used_once(any_report: Report) -> None:
    document = Document(page(any_report))
    assert document.faults == []
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_refers_to_nothing_outside(any_report: Report) -> None:
    text = page(any_report)
    document = Document(text)
    ids = {attributes.get("id") for _, attributes in document.tags}
    assert not {tag for tag, _ in document.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "base",
        "image",
    }
    for tag, attributes in document.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert "//" not in str(value) or name == "aria-label", (tag, name, value)
            if name.endswith(("href", "src")):
                assert str(value)[0] == "#", (tag, name, value)
                assert str(value)[1:] in ids, (tag, name, value)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text


def test_names_are_only_ever_text() -> None:
    text = page(evil_report())
    assert "<script" not in text
    text.encode("utf-8")
    document = Document(text)
    for part in ("head", "h1", "title"):
        assert document.of(part), part
    assert document.text.count("<script>alert('x')</script>\"&amp; $\\frac{1$ ? 猫") > 20
    assert "and 30 more, in report.json" in document.text


def test_colours_come_from_the_style_sheet_alone(any_report: Report) -> None:
    text = page(any_report)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--a)" in drawn
    assert not re.search(r"(?:fill|stroke): ?#", drawn)
    named = set(re.findall(r"var\((--\w+)\)", text))
    for scheme in re.findall(r":root \{(.*?)\}", text):
        assert named <= set(re.findall(r"(--\w+):", scheme))


def test_the_same_report_gives_the_same_page_and_leaves_matplotlib_alone(any_report: Report) -> None:
    before = dict(mpl.rcParams)
    first = page(any_report)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page(any_report) == first
    assert dict(mpl.rcParams) == before
