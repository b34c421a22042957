"""Training batches cut from memory: random crops, flips, cut-outs and CutMix on whole tensors at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from examples.cifar10.data import CLASSES, SIDE, Images, Normalization

_PADDING = 4  # pixels of reflection around an image, hence the largest shift of a crop
_CUTOUT = 8  # pixels, side of the square that is blanked


@dataclass(frozen=True)
class Augmentation:
    """How far a batch is from what is tested.

    ``shift`` is how many pixels a crop may move; ``cutout`` blanks a square of each image; ``cutmix`` is the
    share of batches in which a rectangle of each image comes from another, and its target likewise
    (Yun et al., "CutMix", 2019).
    """

    shift: int = _PADDING
    cutout: bool = False
    cutmix: float = 0.0


class Batches:
    """A training set on one device, which deals augmented batches.

    An image is flipped in every second epoch, so that two epochs show both its sides. Everything random
    comes from the seed and the epoch's number: a resumed training sees the same batches.
    """

    def __init__(
        self,
        images: Images,
        normalization: Normalization,
        *,
        size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        around = ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0))
        self._padded = torch.from_numpy(np.pad(images.pixels, around, mode="reflect")).to(
            device
        )  # [n, 40, 40, 3]
        self._labels = torch.from_numpy(images.labels).to(device)
        self._side = torch.randint(2, (len(images),), generator=torch.Generator().manual_seed(seed))
        self._normalization = normalization
        self.size = size  # images in a batch
        self._seed = seed
        self._device = device

    def __len__(self) -> int:
        """Batches in an epoch; a last incomplete batch is dropped."""
        return len(self._labels) // self.size

    def epoch(self, number: int, how: Augmentation) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: images, float32 [size, 3, 32, 32], and targets, float32 [size, 10]."""
        generator = torch.Generator().manual_seed(self._seed * 100_003 + number + 1)
        order = torch.randperm(len(self._labels), generator=generator)
        for start in range(0, len(self) * self.size, self.size):
            chosen = order[start : start + self.size]
            images = self._augment(chosen, number, generator, how)
            targets = functional.one_hot(self._labels[chosen.to(self._device)], len(CLASSES)).float()
            if float(torch.rand((), generator=generator)) < how.cutmix:
                images, targets = _mix(images, targets, generator)
            yield images, targets

    def _augment(self, chosen: Tensor, epoch: int, generator: torch.Generator, how: Augmentation) -> Tensor:
        """The chosen images (int64 [k]), each cropped, flipped and cut out at random, normalised."""
        count = len(chosen)
        columns = torch.arange(SIDE).expand(count, SIDE)
        flipped = ((self._side[chosen] + epoch) % 2 == 1)[:, None]
        down, right = (_random(2 * how.shift + 1, count, generator) + _PADDING - how.shift for _ in range(2))
        rows = columns + down
        columns = torch.where(flipped, columns.flip(1), columns) + right
        index = (chosen[:, None, None], rows[:, :, None], columns[:, None, :])
        pixels = self._padded[tuple(axis.to(self._device) for axis in index)]
        images = normalize(pixels, self._normalization)
        if not how.cutout:
            return images
        hole = _square(count, generator)[:, None].to(self._device)
        return images.masked_fill(hole, 0.0)


def normalize(pixels: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] as the networks take it (in channels-last memory order)."""
    mean = torch.tensor(normalization.mean, device=pixels.device)
    std = torch.tensor(normalization.std, device=pixels.device)
    return ((pixels.float() * normalization.scale - mean) / std).permute(0, 3, 1, 2)


def _mix(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every image with one rectangle, the same for all, from another; targets by the areas' shares."""
    share = float(torch.rand((), generator=generator))
    side = round(SIDE * math.sqrt(share))
    row, column = (int(_random(SIDE, 1, generator)) - side // 2 for _ in range(2))
    rows = slice(max(0, row), min(SIDE, row + side))
    columns = slice(max(0, column), min(SIDE, column + side))
    others = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[others][:, :, rows, columns]
    area = len(range(SIDE)[rows]) * len(range(SIDE)[columns]) / SIDE**2
    return mixed, targets * (1 - area) + targets[others] * area


def _square(count: int, generator: torch.Generator) -> Tensor:
    """True inside one random square per image: bool [count, 32, 32]."""
    line = torch.arange(SIDE).expand(count, SIDE)
    first_row, first_column = (_random(SIDE - _CUTOUT + 1, count, generator) for _ in range(2))
    rows = (line >= first_row) & (line < first_row + _CUTOUT)
    columns = (line >= first_column) & (line < first_column + _CUTOUT)
    return rows[:, :, None] & columns[:, None, :]


def _random(end: int, count: int, generator: torch.Generator) -> Tensor:
    """Integers from 0 to ``end`` - 1: int64 [count, 1]."""
    return torch.randint(end, (count, 1), generator=generator)
