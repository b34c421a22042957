"""The CIFAR-10 bundle is calibrated on what training held out, and on nothing else."""

from pathlib import Path

import yaml

from examples.cifar10 import build
from examples.cifar10.data import CLASSES, read_normalization
from inference_core.preprocess import Preprocess
from toolchain.images import LabelledImage


def _images(prefix: str) -> list[LabelledImage]:
    return [LabelledImage(f"{prefix}{c}/{n:05d}.jpg", c, b"") for c in CLASSES for n in range(25)]


def test_every_tenth_image_of_a_class_calibrates() -> None:
    chosen = [image.name for image in build.calibration_images(_images(""))]
    assert chosen == [f"{c}/{n:05d}.jpg" for c in CLASSES for n in (0, 10, 20)]


def test_the_folder_above_the_classes_does_not_matter() -> None:
    chosen = [image.name for image in build.calibration_images(_images("train/"))]
    assert chosen == [f"train/{c}/{n:05d}.jpg" for c in CLASSES for n in (0, 10, 20)]


def test_training_and_serving_normalise_alike() -> None:
    text = Path(build.__file__).with_name("preprocess.yaml").read_text(encoding="utf-8")
    rules, trained = Preprocess.model_validate(yaml.safe_load(text)), read_normalization()
    assert (rules.scale, rules.mean, rules.std) == (trained.scale, trained.mean, trained.std)
    assert rules.shape == (3, 32, 32)
