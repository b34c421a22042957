"""The training loop: SGD with a one-cycle rate, averaged weights, a checkpoint after every epoch."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.cifar10.augment import Augmentation, Batches, normalize
from examples.cifar10.data import Images, Normalization

log = logging.getLogger(__name__)

_MOMENTUM = 0.85
_KILOSTEP = 1024 * (1 + 1 / (1 - _MOMENTUM))  # examples that a recipe's rate and decay are for
_AVERAGE_STEPS = 5  # weights are averaged once in so many steps
_AVERAGE_DECAY = 0.95
_CHECK_BATCH = 500  # images
_PROGRESS_S = 30.0  # seconds between progress lines within an epoch

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, logits, targets [n, c] -> scalar


HOLES = Augmentation(cutout=True)
GENTLE = Augmentation(shift=2)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: its name in files and logs, epochs, peak rate and weight decay.

    Rate and decay are those of airbench: per example, for a step of 1024 examples with momentum.
    ``warm_up`` is the share of the steps in which the rate rises; normalisation biases learn
    ``bias_factor`` times faster than weights. The share ``late`` of the epochs, the last ones, has an
    augmentation of its own.
    """

    name: str
    epochs: int
    rate: float
    decay: float
    warm_up: float = 0.2
    bias_factor: float = 64.0
    early: Augmentation = HOLES
    late: Augmentation = GENTLE
    late_share: float = 0.2

    def augmentation(self, epoch: int) -> Augmentation:
        """That of an epoch, counted from 0."""
        return self.late if epoch >= (1 - self.late_share) * self.epochs else self.early


class Trainer:
    """Trains one network; ``average`` is what to keep of it."""

    def __init__(self, network: nn.Module, recipe: Recipe, batches: Batches, folder: Path) -> None:
        self.network = network
        self.average = copy.deepcopy(network).eval()
        self._recipe = recipe
        self._batches = batches
        self._checkpoint = folder / f"{recipe.name}.checkpoint.pt"
        self._steps = recipe.epochs * len(batches)
        self._step = 0
        self._optimizer = _optimizer(network, recipe, batches.size)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)

    def train(
        self, loss: Loss, device: torch.device, check: Callable[[nn.Module], float], *, resume: bool
    ) -> None:
        """Runs all epochs (those that are left, with ``resume``), logging the averaged network's accuracy."""
        first = self._load() if resume else 0
        for epoch in range(first, self._recipe.epochs):
            started = time.monotonic()
            mean_loss = self._epoch(epoch, loss, device)
            self._save(epoch + 1)
            log.info(
                "%s: epoch %d of %d, loss %.3f, accuracy %.4f, %.0f s",
                self._recipe.name, epoch + 1, self._recipe.epochs, mean_loss, check(self.average),
                time.monotonic() - started,
            )  # fmt: skip

    def _epoch(self, epoch: int, loss: Loss, device: torch.device) -> float:
        """One pass over the batches; returns the mean loss."""
        self.network.train()
        total, shown = 0.0, time.monotonic()
        batches = self._batches.epoch(epoch, self._recipe.augmentation(epoch))
        for index, (images, targets) in enumerate(batches):
            with autocast(device):
                value = loss(images, self.network(images), targets)
            self._optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            self._step += 1
            if self._step % _AVERAGE_STEPS == 0:
                self._update_average()
            total += value.item()
            if time.monotonic() - shown > _PROGRESS_S:
                shown = time.monotonic()
                log.info(
                    "%s: epoch %d, batch %d of %d",
                    self._recipe.name,
                    epoch + 1,
                    index + 1,
                    len(self._batches),
                )
        self._update_average()
        return total / len(self._batches)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Moves the averaged weights and statistics towards the current ones, quickly in the first steps."""
        decay = min(_AVERAGE_DECAY, self._step / (self._step + 10 * _AVERAGE_STEPS))
        for mine, current in zip(
            self.average.state_dict().values(), self.network.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(current, 1 - decay)

    def _rate(self, step: int) -> float:
        """The rate's factor at a step: a linear rise from 0.2 to 1, then a linear fall to 0."""
        peak = max(1, round(self._recipe.warm_up * self._steps))
        return (
            0.2 + 0.8 * step / peak if step < peak else max(0.0, (self._steps - step) / (self._steps - peak))
        )

    def _save(self, epochs: int) -> None:
        """Writes the checkpoint; an interruption leaves the previous one."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        part = self._checkpoint.with_suffix(".part")
        torch.save({**state, "epochs": epochs, "step": self._step}, part)
        part.replace(self._checkpoint)

    def _load(self) -> int:
        """Reads the checkpoint, if there is one; returns the epochs done."""
        if not self._checkpoint.exists():
            return 0
        state = torch.load(self._checkpoint, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self._step = int(state["step"])
        log.info("%s: resumes after epoch %d", self._recipe.name, state["epochs"])
        return int(state["epochs"])

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "network": self.network, "average": self.average,
            "optimizer": self._optimizer, "schedule": self._schedule,
        }  # fmt: skip


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic where the device has it in hardware, else float32."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def accuracy(
    network: nn.Module,
    images: Images,
    normalization: Normalization,
    device: torch.device,
    *,
    exact: bool = True,
) -> float:
    """The share of images, 0 to 1, whose largest logit is the right class; in float32 where ``exact``."""
    network.eval()
    right = 0
    with torch.no_grad(), contextlib.nullcontext() if exact else autocast(device):
        for start in range(0, len(images), _CHECK_BATCH):
            part = slice(start, start + _CHECK_BATCH)
            pixels = torch.from_numpy(images.pixels[part]).to(device)
            guesses = network(normalize(pixels, normalization)).argmax(1).cpu().numpy()
            right += int((guesses == images.labels[part]).sum())
    return right / len(images)


def _optimizer(network: nn.Module, recipe: Recipe, batch: int) -> torch.optim.SGD:
    """Nesterov SGD with its own rate for the normalisation biases; weight decay is the same for all."""
    rate = recipe.rate * batch / _KILOSTEP
    decay = recipe.decay * batch / _KILOSTEP
    biases: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (biases if "norm" in name else weights).append(parameter)
    groups = [
        {"params": weights, "lr": rate, "weight_decay": decay / rate},
        {
            "params": biases,
            "lr": rate * recipe.bias_factor,
            "weight_decay": decay / (rate * recipe.bias_factor),
        },
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True)
