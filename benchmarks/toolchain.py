"""The figures of the toolchain, each measured here and now and held against what it is meant to reach.

`python -m benchmarks.toolchain --data TEST.zip`, where TEST holds CIFAR-10 test photos; without it the rows
that need them are left out, and said to be. `--out FILE` also writes the table as Markdown. About ten
minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationMethod
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import networks
from benchmarks.certificates import GAPS, Trial, made_up, of_bundle, trial
from inference_core.bundle import load_bundle
from inference_core.engine import Engine
from toolchain.bundle_commands import bundle_samples
from toolchain.evaluate import evaluate_bundle
from toolchain.graph import check
from toolchain.prepare import prepare
from toolchain.provenance import has_vnni
from toolchain.quantize import Quantizer
from toolchain.recipe import Exits, Recipe
from toolchain.runs import latencies

_CIFAR10 = Path("models/cifar10")
_SHAPES = 10  # populations of made-up scores
_DRAWS = 1000  # certificates of each kind
_PHOTOS = 500
_SIZE = 224
_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
_LIMIT_S, _LIMIT_BYTES = 360.0, 4 << 30


@dataclass(frozen=True)
class Row:
    """One figure: what it is, what was measured, what it is meant to be, and whether it is."""

    what: str
    measured: str
    aim: str
    met: bool


def speed() -> Iterator[Row]:
    """INT8 against FP32 on one thread, and the sizes of their files."""
    builders = {"ResNet-18": networks.resnet18, "ResNet-50": networks.resnet50}
    builders["MobileNetV2"] = networks.mobilenet_v2
    for name, build in builders.items():
        model = check(build(), name).data
        photos = networks.photos(16, _SIZE, seed=1)
        with Quantizer(model, photos) as quantizer:
            small = quantizer.quantize(CalibrationMethod.MinMax)
        engines = {"fp32": Engine(model, name=name), "int8": Engine(small, name=name)}
        times = latencies(
            {key: partial(engine.run, {networks.INPUT: photos[:1]}) for key, engine in engines.items()}
        )
        ratio, size = times["fp32"].p50 / times["int8"].p50, len(model) / len(small)
        yield Row(
            f"{name}-like at {_SIZE}x{_SIZE}: INT8 against FP32, one thread",
            f"{ratio:.1f} times faster ({times['fp32'].p50:.1f} to {times['int8'].p50:.1f} ms), "
            f"{size:.1f} times smaller",
            "2 to 4 times faster, about 4 times smaller",
            ratio >= 2 and size >= 3.5,
        )


def loss(data: Path) -> Iterator[Row]:
    """What INT8 costs the shipped CIFAR-10 pair."""
    bundle = load_bundle(_CIFAR10)
    figures = evaluate_bundle(bundle, bundle_samples(bundle.manifest, data))
    fp, small = figures.variants["fp16"].accuracy, figures.variants["int8"].accuracy
    yield Row(
        "INT8 on the shipped CIFAR-10 edge model",
        f"{100 * (fp - small):.2f} points lost ({fp:.2%} to {small:.2%})",
        "at most 0.5 points",
        fp - small <= 0.005,
    )


def certificates(data: Path | None) -> Iterator[Row]:
    """How often a certified bound is broken, and what certainty costs beside hindsight."""
    pools: dict[str, Callable[[float], list[Trial]]] = {
        "made-up scores": lambda gap: [
            trial(made_up(shape), gap, draws=_DRAWS // _SHAPES, seed=shape) for shape in range(_SHAPES)
        ]
    }
    if data is not None:
        population = of_bundle(load_bundle(_CIFAR10), [data])
        pools["CIFAR-10 pair"] = lambda gap: [trial(population, gap, draws=_DRAWS)]
    for name, draw in pools.items():
        for gap in GAPS:
            trials = draw(gap)
            broken, chance = fmean(t.broken for t in trials), fmean(t.chance for t in trials)
            yield Row(
                f"{name}: bound of {gap:.1%} broken, {_DRAWS:,} certificates from 5,000 samples",
                f"{broken:.1%} (exactly {chance:.1%} are to be expected)",
                "at most 5 %",
                broken <= 1 - trials[0].level,
            )
            ratio = fmean(t.ratio for t in trials)
            yield Row(
                f"{name}: escalated for a gap of {gap:.1%}, against the best threshold in hindsight",
                f"{ratio:.2f} times ({fmean(t.escalated for t in trials):.1%} of all)",
                "at most 1.3 times",
                ratio <= 1.3,
            )


def exits(data: Path) -> Iterator[Row]:
    """A pair made of the full CIFAR-10 model alone: its head with an exit, and its tail."""
    bundle = load_bundle(_CIFAR10)
    manifest = bundle.manifest
    recipe = Recipe(
        model="alone",
        version="1",
        full=check(bundle.read(manifest.full), "full.onnx"),
        samples=bundle_samples(manifest, data),
        labels=manifest.labels,
        preprocess=manifest.preprocess,
        exits=Exits.ALWAYS,
    )
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(recipe, Path(folder) / "alone")
    test, edge = made.report.test, made.bundle.manifest.edge_variant
    full = next(row for row in made.report.forms if row.name == "full")
    yield Row(
        f"early exit of the full CIFAR-10 model, {edge.precision} head at {edge.cut}",
        f"{1 - test.escalated:.0%} answered by the edge, {100 * test.gap:.1f} points below the full model, "
        f"{full.one_thread.p50 / (edge.latency_ms or np.inf):.1f} times as fast ({test.samples:,} photos)",
        "at least half, at most 1 point",
        test.escalated <= 0.5 and test.gap <= 0.01,
    )


def effort() -> Iterator[Row]:
    """`tandem prepare` of a MobileNetV2-sized model with 500 photos: time and memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_photos(folder / "photos")
        samples, classes = networks.scenes(_PHOTOS, _SIZE, seed=3)
        taught = networks.teach(networks.mobilenet_v2(classes=10), samples[:200], classes[:200])
        (folder / "full.onnx").write_bytes(taught)
        command = [
            sys.executable, "-m", "toolchain", "prepare", str(folder / "full.onnx"),
            "--data", str(folder / "photos"), "--out", str(folder / "mobile"), "--gap", "0.05",
            "--mean", ",".join(map(str, _MEAN)), "--std", ",".join(map(str, _STD)),
        ]  # fmt: skip
        seconds, peak = watch(command)
    yield Row(
        f"tandem prepare of MobileNetV2 with {_PHOTOS} photos of {_SIZE}x{_SIZE}, {os.cpu_count()} cores",
        f"{seconds:.0f} s, {peak / 2**30:.1f} GiB at most",
        "under 6 minutes, under 4 GB",
        seconds < _LIMIT_S and peak < _LIMIT_BYTES,
    )


def _write_photos(folder: Path) -> None:
    """Labelled JPEGs: what `networks.scenes` gives, undone from normalisation."""
    samples, classes = networks.scenes(_PHOTOS, _SIZE, seed=3)
    for number, (sample, label) in enumerate(zip(samples, classes, strict=True)):
        pixels = (sample.transpose(1, 2, 0) * _STD + _MEAN) * 255
        path = folder / f"thing{label}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def watch(command: list[str]) -> tuple[float, int]:
    """Run `command`; its seconds, and the most memory that it held, in bytes, 0 where that is not told."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while True:
            try:
                code = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                lines = status.read_text().splitlines() if status.exists() else []
                peak = max([peak, *(int(line.split()[1]) << 10 for line in lines if "VmHWM" in line)])
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with status {code}")
    return time.monotonic() - started, peak


def measure(data: Path | None) -> Iterator[Row]:
    """Every row, in order."""
    yield from speed()
    yield from effort()
    if data is not None:
        yield from loss(data)
        yield from exits(data)
    yield from certificates(data)


def markdown(rows: list[Row]) -> str:
    """`rows` as a table of a Markdown page."""
    lines = ["| figure | measured | aim | met |", "|---|---|---|:-:|"]
    lines += [f"| {row.what} | {row.measured} | {row.aim} | {'yes' if row.met else 'no'} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the toolchain.")
    photos = os.environ.get("TANDEM_CIFAR10")
    default = Path(photos) / "test.zip" if photos else None
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 test photos; TANDEM_CIFAR10 too")
    parser.add_argument("--out", type=Path, help="also write a Markdown page")
    arguments = parser.parse_args()
    table = Table(title="Figures of the toolchain", title_justify="left")
    for column in ("figure", "measured", "aim", "met"):
        table.add_column(column)
    rows = []
    console = Console(width=150)
    for row in measure(arguments.data):
        rows.append(row)
        table.add_row(row.what, row.measured, row.aim, "yes" if row.met else "NO")
        console.print(f"{row.what}: {row.measured}", highlight=False)
    vnni = {True: "with", False: "without", None: "perhaps without"}[has_vnni()]
    told = f"ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores, {vnni} VNNI"
    table.caption = told if arguments.data else f"{told}; no photos given: rows that need them are missing"
    console.print(table)
    if arguments.out:
        arguments.out.write_text(
            f"# Figures of the toolchain\n\nPrinted by `make bench-toolchain`: {told}.\n\n{markdown(rows)}"
        )


if __name__ == "__main__":
    main()
