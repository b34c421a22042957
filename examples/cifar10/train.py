"""Trains the two networks of the CIFAR-10 bundle and exports them as ONNX.

``python -m examples.cifar10.train --data train.zip --test test.zip --out WORKDIR`` trains the full network
in two cycles, then the edge network on its answers, and leaves ``full.onnx``, ``edge.onnx`` and
``training.json`` there.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.cifar10.augment import Augmentation, Batches, normalize
from examples.cifar10.data import Images, Normalization, calibration_mask, read_images, read_normalization
from examples.cifar10.export import export
from examples.cifar10.networks import EdgeNetwork, FullNetwork
from examples.cifar10.recipe import Loss, Recipe, Trainer, accuracy, autocast

log = logging.getLogger(__name__)

_BATCH = 500  # images in a step
_SMOOTHING = 0.1  # share of the target spread over all classes
_TEMPERATURE = 2.0  # softens both networks' answers in distillation
_EARLIER_SHARE = 0.3  # of the second cycle's loss, what the first cycle's network says
_EARLIER_TEMPERATURE = 1.5  # softens that
_WHITENING_STRIDE = 9  # one image in so many shows what the stem is to decorrelate


def hard_loss(_images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy against smoothed targets: logits and targets [n, c] to a scalar."""
    return functional.cross_entropy(logits.float(), targets, label_smoothing=_SMOOTHING)


def consolidating_loss(earlier: nn.Module, device: torch.device) -> Loss:
    """The loss of the second cycle: `hard_loss`, and the softened answers of the first cycle's network."""

    def loss(images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device):
            wanted = functional.softmax(earlier(images).float() / _EARLIER_TEMPERATURE, 1)
        soft = functional.cross_entropy(logits.float(), wanted)
        return (1 - _EARLIER_SHARE) * hard_loss(images, logits, targets) + _EARLIER_SHARE * soft

    return loss


def distillation_loss(teacher: nn.Module, device: torch.device) -> Loss:
    """The loss of a student: the divergence from the teacher's softened answers on the same images."""

    def loss(images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device):
            wanted = functional.log_softmax(teacher(images).float() / _TEMPERATURE, 1)
        given = functional.log_softmax(logits.float() / _TEMPERATURE, 1)
        soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return soft * _TEMPERATURE**2 * 0.9 + functional.cross_entropy(logits.float(), targets) * 0.1

    return loss


@dataclass(frozen=True)
class Lesson:
    """What both trainings share: the images, how they are normalised, where the work is done and left."""

    training: Images
    checked: Images  # held out: neither trained on nor part of the test images
    batches: Batches
    normalization: Normalization
    device: torch.device
    folder: Path
    resume: bool

    def whiten(self, network: FullNetwork | EdgeNetwork) -> None:
        """Sets the fixed filters of an untrained network's stem."""
        some = torch.from_numpy(self.training.pixels[::_WHITENING_STRIDE])
        network.stem.whiten(normalize(some, self.normalization))

    def teach(self, network: FullNetwork | EdgeNetwork, recipe: Recipe, loss: Loss) -> nn.Module:
        """Trains one network, writes ``<name>.onnx``, and returns the averaged network."""
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = Trainer(network, recipe, self.batches, self.folder)
        check = functools.partial(self.accuracy, images=self.checked, exact=False)
        trainer.train(loss, self.device, check, resume=self.resume)
        export(trainer.average, self.folder / f"{recipe.name}.onnx", network.cuts)
        return trainer.average

    def accuracy(self, network: nn.Module, images: Images, *, exact: bool = True) -> float:
        """The share of right answers, 0 to 1; without ``exact`` in the arithmetic of the training."""
        return accuracy(network, images, self.normalization, self.device, exact=exact)


def prepare(arguments: argparse.Namespace) -> Lesson:
    """Reads the training images and sets every tenth apart."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = read_images(arguments.data)
    held_out = calibration_mask(images)
    training, checked = images.subset(~held_out), images.subset(held_out)
    log.info("%d images to train on, %d held out, on %s", len(training), len(checked), device)
    normalization = read_normalization()
    batches = Batches(training, normalization, size=_BATCH, seed=arguments.seed, device=device)
    return Lesson(training, checked, batches, normalization, device, arguments.out, arguments.resume)


def _recipes(arguments: argparse.Namespace) -> dict[str, Recipe]:
    """Two cycles for the full network, the second with CutMix and half the rate; one for the edge."""
    return {
        "first": Recipe("first", arguments.epochs_first, rate=9.0, decay=0.012),
        "full": Recipe(
            "full",
            arguments.epochs_full,
            rate=4.5,
            decay=0.012,
            warm_up=0.05,
            bias_factor=16.0,
            early=Augmentation(shift=2, cutmix=0.6),
            late=Augmentation(cutout=True),
            late_share=0.12,
        ),
        "edge": Recipe("edge", arguments.epochs_edge, rate=9.0, decay=0.004, early=Augmentation(cutmix=0.5)),
    }


def teach_first(lesson: Lesson, recipe: Recipe) -> nn.Module:
    """The full network's first cycle, from random weights."""
    network = FullNetwork()
    lesson.whiten(network)
    return lesson.teach(network, recipe, hard_loss)


def teach_full(lesson: Lesson, recipe: Recipe, first: nn.Module) -> nn.Module:
    """Its second cycle, from the first one's weights."""
    network = FullNetwork()
    network.load_state_dict(first.state_dict())
    return lesson.teach(network, recipe, consolidating_loss(first, lesson.device))


def teach_edge(lesson: Lesson, recipe: Recipe, full: nn.Module) -> nn.Module:
    """The edge network, from random weights, on the full one's answers."""
    network = EdgeNetwork()
    lesson.whiten(network)
    return lesson.teach(network, recipe, distillation_loss(full, lesson.device))


def main() -> None:
    """The command line."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    lesson = prepare(arguments)
    recipes = _recipes(arguments)
    first = teach_first(lesson, recipes["first"])
    full = teach_full(lesson, recipes["full"], first)
    edge = teach_edge(lesson, recipes["edge"], full)

    measured = {"calibration": lesson.checked}
    if arguments.test is not None:
        measured["test"] = read_images(arguments.test)
    report: dict[str, object] = {
        "seed": arguments.seed,
        "torch": torch.__version__,
        "training_images": len(lesson.training),
    }
    for name, network in (("full", full), ("edge", edge)):
        shares = {split: lesson.accuracy(network, images) for split, images in measured.items()}
        report[name] = {"epochs": recipes[name].epochs, "accuracy": shares}
        log.info("%s: accuracy %s", name, shares)
    text = json.dumps(report, indent=2) + "\n"
    (arguments.out / "training.json").write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="training images: an ImageFolder or a zip of one"
    )
    parser.add_argument("--test", type=Path, help="test images, measured at the end")
    parser.add_argument("--out", type=Path, required=True, help="where models and checkpoints are written")
    parser.add_argument("--epochs-first", type=int, default=44, help="default: %(default)s")
    parser.add_argument("--epochs-full", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--epochs-edge", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
