"""Trains the two networks of the digits bundle and exports them as ONNX; needs the extra `train`.

`python -m examples.digits.train --out WORKDIR` trains the full network on the scans, then the edge
network on the full one's answers, and writes `full.onnx` and `edge.onnx`. Half a minute on one core.
"""

import argparse
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits.data import read_samples
from toolchain.samples import Samples
from toolchain.scans import Part

log = logging.getLogger(__name__)

OPSET = 17
_BATCH = 100
_TEMPERATURE = 3.0  # softens the full network's answers for the edge network to learn from
_PROGRESS_S = 5.0

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, logits, labels -> scalar


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """3x3 convolution, normalisation, ReLU: [n, c, h, w] in and out; `stride` 2 halves the sides."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def full_network() -> nn.Module:
    """The cloud's network: [n, 1, 8, 8] to logits [n, 10]; narrow, so cheap to cut, behind its blocks."""
    return nn.Sequential(
        OrderedDict(
            block1=nn.Sequential(convolution(1, 32), convolution(32, 16)),
            block2=nn.Sequential(convolution(16, 64, 2), convolution(64, 64), convolution(64, 16)),
            block3=nn.Sequential(convolution(16, 64), nn.Flatten(), nn.Dropout(0.3)),
            classifier=nn.Linear(64 * 4 * 4, 10),
        )
    )


def edge_network() -> nn.Module:
    """The edge's network, some 700 parameters: [n, 1, 8, 8] to logits [n, 10]."""
    return nn.Sequential(convolution(1, 4, 2), convolution(4, 8, 2), nn.Flatten(), nn.Linear(8 * 2 * 2, 10))


def hard_loss(_images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy against smoothed labels."""
    return functional.cross_entropy(logits, labels, label_smoothing=0.05)


def distillation_loss(teacher: nn.Module) -> Loss:
    """The divergence from the teacher's softened answers on the same distorted images."""

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(images) / _TEMPERATURE, 1)
        given = functional.log_softmax(logits / _TEMPERATURE, 1)
        soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return soft * _TEMPERATURE**2 * 0.8 + functional.cross_entropy(logits, labels) * 0.2

    return loss


def distort(images: Tensor) -> Tensor:
    """`images` [n, 1, 8, 8], each turned, scaled, sheared and moved a little; some blurred as by resizing."""
    count = len(images)
    linear = torch.eye(2).repeat(count, 1, 1) + torch.randn(count, 2, 2) * 0.09
    affine = torch.cat([linear, torch.randn(count, 2, 1) * 0.09], 2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images - images.min(), grid, align_corners=False) + images.min()
    blurred = functional.avg_pool2d(functional.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.3) * 0.6
    return moved.lerp(blurred, amount) + torch.randn_like(images) * 0.05


def train(network: nn.Module, samples: Samples, epochs: int, loss: Loss, rate: float) -> nn.Module:
    """`network`, trained for `epochs` with a one-cycle rate that peaks at `rate`; in eval mode."""
    images, labels = torch.from_numpy(samples.inputs), torch.from_numpy(samples.classes)
    steps = epochs * (len(images) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    shown = time.monotonic()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images)).split(_BATCH)[: len(images) // _BATCH]:
            batch = distort(images[chosen])
            value = loss(batch, network(batch), labels[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
        if time.monotonic() - shown > _PROGRESS_S:
            shown = time.monotonic()
            log.info("epoch %d of %d", epoch + 1, epochs)
    return network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Write `path`: `input` float32 [batch, 1, 8, 8] to `logits` float32 [batch, 10]."""
    torch.onnx.export(
        network,
        (torch.randn(2, 1, 8, 8),),
        path,
        opset_version=OPSET,
        dynamo=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={name: {0: "batch"} for name in ("input", "logits")},
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)


def accuracy(network: nn.Module, samples: Samples) -> float:
    """The share of `samples` whose largest logit is the right class."""
    with torch.no_grad():
        chosen = network(torch.from_numpy(samples.inputs)).argmax(1)
    return float((chosen == torch.from_numpy(samples.classes)).float().mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train and export the networks of the digits bundle.")
    parser.add_argument("--out", type=Path, required=True, help="where full.onnx and edge.onnx are written")
    parser.add_argument("--epochs", type=int, default=150, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # these networks are too small to share out
    parts = {part: read_samples(part) for part in Part}
    full = train(full_network(), parts[Part.TRAIN], arguments.epochs, hard_loss, 4e-3)
    edge = train(edge_network(), parts[Part.TRAIN], arguments.epochs, distillation_loss(full), 2e-2)
    for name, network in (("full", full), ("edge", edge)):
        shares = ", ".join(f"{part} {accuracy(network, samples):.4f}" for part, samples in parts.items())
        log.info("%s: accuracy %s", name, shares)
    export(full, arguments.out / "full.onnx")
    export(edge, arguments.out / "edge.onnx")


if __name__ == "__main__":
    main()
