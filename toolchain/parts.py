"""The data in three parts: to calibrate, to certify, to test."""

import math
from dataclasses import dataclass

import numpy as np

from inference_core.errors import InvalidInput
from toolchain.samples import Purpose, Samples, generator

MIN_SAMPLES = 10  # that can be parted


@dataclass(frozen=True)
class Parts:
    """Samples for three purposes, none of them in two parts."""

    calibration: Samples
    certification: Samples
    test: Samples


def partition(
    samples: Samples,
    seed: int,
    shares: tuple[float, float, float] = (0.3, 0.5, 0.2),
    test: Samples | None = None,
) -> Parts:
    """`samples` shuffled and dealt out by `shares`, at least one to each part.

    With a `test` part of its own all go to the other two. Every order is equally likely, whatever the
    classes: so the parts are exchangeable, which the certificate rests on. Raises `InvalidInput` for
    fewer than `MIN_SAMPLES`, and for shares that are not positive or do not add up to 1.
    """
    if len(samples) < MIN_SAMPLES:
        raise InvalidInput(f"there are {len(samples)} samples to use, at least {MIN_SAMPLES} are needed")
    if min(shares) <= 0 or not math.isclose(sum(shares), 1):
        raise InvalidInput(f"shares must be positive and add up to 1, got {shares}")
    if test is not None:
        shares = (shares[0] / (1 - shares[2]), shares[1] / (1 - shares[2]), 0.0)
    counts = [max(share > 0, round(share * len(samples))) for share in shares]
    counts[int(np.argmax(shares))] += len(samples) - sum(counts)
    order = generator(Purpose.PART, seed).permutation(len(samples))
    first, second, third = np.split(order, np.cumsum(counts)[:2])
    last = samples.take(third) if test is None else test
    return Parts(samples.take(first), samples.take(second), last)
