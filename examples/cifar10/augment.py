"""Training batches cut from memory: random crops, flips and cut-outs on whole tensors at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from examples.cifar10.data import SIDE, Images, Normalization

_PADDING = 4  # pixels of reflection around an image, hence the largest shift of a crop
_CUTOUT = 8  # pixels, side of the square that is blanked


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

    def epoch(self, number: int, *, gentle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: images, float32 [size, 3, 32, 32], and labels, int64 [size].

        ``gentle`` batches are closer to what is tested: no cut-outs, and half the shift.
        """
        generator = torch.Generator().manual_seed(self._seed * 100_003 + number + 1)
        order = torch.randperm(len(self._labels), generator=generator)
        for start in range(0, len(self) * self.size, self.size):
            chosen = order[start : start + self.size]
            yield self._augment(chosen, number, generator, gentle), self._labels[chosen.to(self._device)]

    def _augment(self, chosen: Tensor, epoch: int, generator: torch.Generator, gentle: bool) -> Tensor:
        """The chosen images (int64 [k]), each cropped, flipped and cut out at random, normalised."""
        count = len(chosen)
        columns = torch.arange(SIDE).expand(count, SIDE)
        flipped = ((self._side[chosen] + epoch) % 2 == 1)[:, None]
        shift = _PADDING // 2 if gentle else _PADDING
        down, right = (_random(2 * shift + 1, count, generator) + _PADDING - shift for _ in range(2))
        rows = columns + down
        columns = torch.where(flipped, columns.flip(1), columns) + right
        index = (chosen[:, None, None], rows[:, :, None], columns[:, None, :])
        pixels = self._padded[tuple(axis.to(self._device) for axis in index)]
        images = normalize(pixels, self._normalization)
        if gentle:
            return images
        hole = _square(count, generator)[:, None].to(self._device)
        return images.masked_fill(hole, 0.0)


def normalize(pixels: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] as the networks take it (in channels-last memory order)."""
    mean = torch.tensor(normalization.mean, device=pixels.device)
    std = torch.tensor(normalization.std, device=pixels.device)
    return ((pixels.float() * normalization.scale - mean) / std).permute(0, 3, 1, 2)


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
