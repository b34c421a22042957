"""What a certificate is worth: how often its bound is broken, and what it costs beside hindsight.

`python -m benchmarks.certificates --bundle models/cifar10 --data TEST.zip`, where TEST holds samples that
took no part in making the bundle. Certification parts are drawn from them again and again, independently
and with replacement, so that they are the whole population: the true risk of every threshold is known
exactly. The same is done with made-up scores. All draws are seeded.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from inference_core.bundle import Bundle, File, load_bundle
from inference_core.confidence import Floats
from inference_core.errors import InvalidInput, TandemError
from toolchain.calibrate import Classes, Flags, Logits, confidences, losses
from toolchain.certify import Certified, candidates, certify_gap
from toolchain.progress import track
from toolchain.runs import CPU, run
from toolchain.samples import Wanted, read_samples

GAPS = (0.01, 0.005)
LEVEL = 0.95
DRAWS = 1000
SAMPLES = 5000  # in one certification part
RATIO = 1.3  # of what is escalated to what hindsight would: the aim
_MADE_UP = 200_000  # samples in the population of made-up scores


@dataclass(frozen=True)
class Population:
    """The edge's confidences `[N]`, and where only the full model is right, `[N]`."""

    name: str
    confidence: Floats
    loss: Flags

    def risk(self, threshold: float) -> float:
        """The share that is lost at `threshold`."""
        return float((self.loss & (self.confidence >= threshold)).mean())

    def escalated(self, threshold: float) -> float:
        """The share that is escalated at `threshold`."""
        return float((self.confidence < threshold).mean())

    def hindsight(self, gap: float) -> float:
        """The smallest share whose escalation keeps the risk within `gap`, of all thresholds there are."""
        order = np.argsort(-self.confidence, kind="stable")
        ranked = self.confidence[order]
        ends = np.append(ranked[1:] < ranked[:-1], True)  # equal confidences are answered together
        within = ends & (np.cumsum(self.loss[order]) <= gap * len(order))
        answered = int(np.flatnonzero(within)[-1]) + 1 if within.any() else 0
        return 1 - answered / len(order)


@dataclass(frozen=True)
class Trial:
    """`draws` certificates for `gap` at confidence `level`, each from `samples` samples of a population.

    `broken` is the share of draws whose threshold has a true risk above `gap`, `chance` the exact
    probability of that, at most `1 - level`; `refused` is the share that certified nothing. `escalated` is
    the median, over the certificates, of the true share escalated, NaN without any; `hindsight` the least
    that could have been.
    """

    population: str
    size: int
    samples: int
    draws: int
    gap: float
    level: float
    broken: float
    chance: float
    refused: float
    escalated: float
    hindsight: float

    @property
    def ratio(self) -> float:
        """How many times more is escalated than with hindsight."""
        return self.escalated / self.hindsight if self.hindsight else float("inf")


def made_up(shape: int = 0) -> Population:
    """Confidences spread evenly over [0, 1], and losses with the chance `worst * (1 - confidence) ** bend`.

    `worst` rises from 0.08 with `shape`, by 0.04 each; `bend` is 2, 1 and 3 in turn.
    """
    rng = np.random.default_rng(shape)
    confidence = rng.random(_MADE_UP)
    chance = (0.08 + 0.04 * shape) * (1 - confidence) ** (2, 1, 3)[shape % 3]
    return Population("made up", confidence, rng.random(_MADE_UP) < chance)


def of_bundle(bundle: Bundle, data: Sequence[Path]) -> Population:
    """What the two models of `bundle` answer on all samples of `data`, each as `read_samples` takes it.

    Raises `InvalidInput` for samples that do not fit the bundle.
    """
    answers = [_answers(bundle, source) for source in data]
    edge, full, classes = (np.concatenate(arrays) for arrays in zip(*answers, strict=True))
    rule = bundle.manifest.calibration
    confidence = confidences(edge, rule.temperature, rule.scorer)
    return Population(bundle.manifest.model, confidence, losses(edge, full, classes))


def trial(
    population: Population,
    gap: float,
    level: float = LEVEL,
    samples: int = SAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
) -> Trial:
    """Certify `gap` on `draws` random parts of `samples` samples each, and hold them against the truth.

    The candidates come from the whole population: they are the same for all draws, so fixed beforehand.
    Raises `InvalidInput` for numbers of samples or draws below 1.
    """
    if min(samples, draws) < 1:
        raise InvalidInput(f"samples and draws must be at least 1, got {samples} and {draws}")
    rng = np.random.default_rng(seed)
    thresholds = candidates(population.confidence)
    certified = []
    for _ in track(range(draws), f"certifying {population.name}"):
        found = _certify(population, rng.integers(len(population.loss), size=samples), thresholds, gap, level)
        if found is not None:
            certified.append(found.threshold)
    broken = sum(population.risk(threshold) > gap for threshold in certified)
    shares = [population.escalated(threshold) for threshold in certified]
    return Trial(
        population=population.name,
        size=len(population.loss),
        samples=samples,
        draws=draws,
        gap=gap,
        level=level,
        broken=broken / draws,
        chance=_chance(population, thresholds, gap, level, samples),
        refused=1 - len(certified) / draws,
        escalated=float(np.median(shares)) if shares else float("nan"),
        hindsight=population.hindsight(gap),
    )


def render(trials: Sequence[Trial]) -> Table:
    """`trials` as a table for a terminal."""
    first = trials[0]
    title = f"{first.draws:,} certificates from {first.samples:,} samples each, confidence {first.level:.0%}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in ("pool", "gap", "broken", "chance", "refused", "escalated", "hindsight", "ratio"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for each in trials:
        shares = (each.gap, each.broken, each.chance, each.refused, each.escalated, each.hindsight)
        table.add_row(each.population, *(f"{share:.1%}" for share in shares), f"{each.ratio:.2f}")
    sizes = ", ".join(f"{name} {size:,}" for name, size in {e.population: e.size for e in trials}.items())
    table.caption = (
        f"broken: share of certificates whose bound does not hold; chance: its exact probability, allowed is "
        f"{1 - first.level:.1%}; escalated: the median; hindsight: the least that keeps within the gap; "
        f"ratio: of these two, meant to be at most {RATIO}; sizes: {sizes}"
    )
    return table


def _chance(population: Population, thresholds: Floats, gap: float, level: float, samples: int) -> float:
    """The exact probability that the bound is broken.

    Risks only rise along the candidates, and so does the number of losses in any draw: the bound is broken
    when the first candidate whose true risk is above `gap` passes its test.
    """
    first = next((risk for risk in map(population.risk, thresholds) if risk > gap), None)
    if first is None:
        return 0.0
    events = np.arange(samples + 1)
    most = np.count_nonzero(binom.cdf(events, samples, gap) <= 1 - level) - 1  # losses that still pass
    return float(binom.cdf(most, samples, first))


def _certify(
    population: Population, rows: NDArray[np.int64], thresholds: Floats, gap: float, level: float
) -> Certified | None:
    """The certificate from `rows` of the population; None where there can be none."""
    try:
        return certify_gap(population.confidence[rows], population.loss[rows], thresholds, gap, level)
    except InvalidInput:
        return None


def _answers(bundle: Bundle, source: Path) -> tuple[Logits, Logits, Classes]:
    """The logits of the edge model and of the full one, `[N, k]`, and the classes `[N]`.

    Without labels the classes are what the full model names.
    """
    manifest = bundle.manifest
    wanted = Wanted(manifest.input, len(manifest.labels), manifest.preprocess)
    samples, _ = read_samples(source, wanted, manifest.labels)

    def logits(file: File) -> Logits:
        engine = bundle.engine(file, threads=1, providers=CPU)
        return run(engine, {manifest.input.name: samples.inputs}, file.file)[manifest.output.name]

    edge, full = logits(manifest.edge_variant), logits(manifest.full)
    return edge, full, full.argmax(axis=1) if samples.classes is None else samples.classes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Certify thresholds again and again, and count broken bounds."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--data", type=Path, required=True, nargs="+", help="test samples: folders, zips or .npz"
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="in each draw; default: %(default)s")
    arguments = parser.parse_args()
    try:
        populations = [of_bundle(load_bundle(arguments.bundle), arguments.data), made_up()]
        trials = [
            trial(population, gap, samples=arguments.samples, draws=arguments.draws)
            for population in populations
            for gap in GAPS
        ]
    except TandemError as error:
        sys.exit(f"error: {error}")
    Console().print(render(trials))


if __name__ == "__main__":
    main()
