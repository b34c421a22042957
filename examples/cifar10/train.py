"""Trains the two networks of the CIFAR-10 bundle and exports them as ONNX.

``python -m examples.cifar10.train --data train.zip --test test.zip --out WORKDIR`` trains the full network,
then the edge network on the full one's answers, and writes ``full.onnx``, ``edge.onnx``, ``training.json``.
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

from examples.cifar10.augment import Batches, normalize
from examples.cifar10.data import Images, Normalization, calibration_mask, read_images, read_normalization
from examples.cifar10.export import export
from examples.cifar10.networks import EdgeNetwork, FullNetwork
from examples.cifar10.recipe import Loss, Recipe, Trainer, accuracy, autocast

log = logging.getLogger(__name__)

_BATCH = 500  # images in a step
_SMOOTHING = 0.1  # share of the target spread over all classes
_TEMPERATURE = 2.0  # softens both networks' answers in distillation
_WHITENING_STRIDE = 9  # one image in so many shows what the stem is to decorrelate


def hard_loss(_images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy against smoothed labels: logits [n, c] and labels [n] to a scalar."""
    return functional.cross_entropy(logits.float(), labels, label_smoothing=_SMOOTHING)


def distillation_loss(teacher: nn.Module, device: torch.device) -> Loss:
    """The loss of a student: the divergence from the teacher's softened answers on the same images."""

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device):
            wanted = functional.log_softmax(teacher(images).float() / _TEMPERATURE, 1)
        given = functional.log_softmax(logits.float() / _TEMPERATURE, 1)
        soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return soft * _TEMPERATURE**2 * 0.9 + functional.cross_entropy(logits.float(), labels) * 0.1

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

    def teach(self, network: FullNetwork | EdgeNetwork, recipe: Recipe, loss: Loss) -> nn.Module:
        """Trains one network, writes ``<name>.onnx``, and returns the averaged network."""
        some = torch.from_numpy(self.training.pixels[::_WHITENING_STRIDE])
        network.stem.whiten(normalize(some, self.normalization))
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


def main() -> None:
    """The command line."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    lesson = prepare(arguments)
    full_recipe = Recipe("full", arguments.epochs_full, rate=9.0, decay=0.012)
    full = lesson.teach(FullNetwork(), full_recipe, hard_loss)
    edge_recipe = Recipe("edge", arguments.epochs_edge, rate=9.0, decay=0.004)
    edge = lesson.teach(EdgeNetwork(), edge_recipe, distillation_loss(full, lesson.device))

    measured = {"calibration": lesson.checked}
    if arguments.test is not None:
        measured["test"] = read_images(arguments.test)
    report: dict[str, object] = {
        "seed": arguments.seed,
        "torch": torch.__version__,
        "training_images": len(lesson.training),
    }
    for recipe, network in ((full_recipe, full), (edge_recipe, edge)):
        shares = {split: lesson.accuracy(network, images) for split, images in measured.items()}
        report[recipe.name] = {"epochs": recipe.epochs, "accuracy": shares}
        log.info("%s: accuracy %s", recipe.name, shares)
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
    parser.add_argument("--epochs-full", type=int, default=44, help="default: %(default)s")
    parser.add_argument("--epochs-edge", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
