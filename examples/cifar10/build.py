"""Makes the CIFAR-10 bundle from the trained networks.

`python -m examples.cifar10.build --models WORKDIR --data train.zip --test test.zip --out models/cifar10`,
where WORKDIR is what `examples.cifar10.train` wrote. Ten minutes on one core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from examples.cifar10.data import CLASSES, Images, calibration_mask
from inference_core.preprocess import Preprocess
from toolchain.evaluate import render
from toolchain.images import LabelledImage, read_images
from toolchain.prepare import Recipe, prepare

VERSION = "1"
CUTS = {"block2": "block2", "block3": "block3"}  # tensors that the export names: 8 x 8 and 4 x 4 pixels


def calibration_images(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Those of the training `images` that training left out, by the rule in `data`."""
    labels = np.array([CLASSES.index(str(image.label)) for image in images], np.int64)
    names = tuple("/".join(image.name.split("/")[-2:]) for image in images)
    # The rule goes by names alone, so no pixel needs decoding for it.
    mask = calibration_mask(Images(np.empty((len(images), 0), np.uint8), labels, names))
    return [image for image, held_out in zip(images, mask, strict=True) if held_out]


def main() -> None:
    """The command line."""
    arguments = _arguments()
    rules = Path(__file__).with_name("preprocess.yaml").read_text(encoding="utf-8")
    recipe = Recipe(
        model="cifar10",
        version=VERSION,
        preprocess=Preprocess.model_validate(yaml.safe_load(rules)),
        labels=CLASSES,
        full=(arguments.models / "full.onnx").read_bytes(),
        edge=(arguments.models / "edge.onnx").read_bytes(),
        cuts=CUTS,
        calibration=calibration_images(read_images(arguments.data, labels=CLASSES)),
        test=read_images(arguments.test, labels=CLASSES),
        half=True,
    )
    _, figures = prepare(recipe, arguments.out, replace_folder=arguments.replace)
    Console().print(render(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Quantize, split, calibrate and package the CIFAR-10 networks."
    )
    parser.add_argument("--models", type=Path, required=True, help="where full.onnx and edge.onnx are")
    parser.add_argument("--data", type=Path, required=True, help="training images: a folder or a zip")
    parser.add_argument("--test", type=Path, required=True, help="test images: a folder or a zip")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--replace", action="store_true", help="replace the folder if it exists")
    return parser.parse_args()


if __name__ == "__main__":
    main()
