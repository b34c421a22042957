"""Makes the CIFAR-10 bundle from the trained networks: what `tandem prepare` does, on what training held out.

`python -m examples.cifar10.build --models WORKDIR --data train.zip --test test.zip --out models/cifar10`,
where WORKDIR is what `examples.cifar10.train` wrote. Five minutes on two cores.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from examples.cifar10.data import CLASSES, Images, calibration_mask
from inference_core.manifest import TensorInfo
from toolchain.graph import check, read_model
from toolchain.images import LabelledImage, read_images
from toolchain.inspection import describe
from toolchain.prepare import prepare
from toolchain.recipe import Recipe, Targets
from toolchain.rules import read_preprocess
from toolchain.samples import Wanted, samples_of

VERSION = "2"
CUTS = {"block2": ("block2",), "block3": ("block3",)}  # tensors that the export names: 8 x 8 and 4 x 4 pixels
TARGETS = Targets(gap=0.01, confidence=0.95, max_loss=0.005, max_change=0.005)


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
    console = Console()
    rules = read_preprocess(Path(__file__).with_name("preprocess.yaml"))
    wanted = Wanted(
        TensorInfo(name="input", datatype="FP32", shape=rules.shape), len(CLASSES), rules, resize=False
    )
    held_out = calibration_images(read_images(arguments.data, labels=CLASSES))
    recipe = Recipe(
        model="cifar10",
        version=VERSION,
        full=check(read_model(arguments.models / "full.onnx"), "full.onnx"),
        edge=check(read_model(arguments.models / "edge.onnx"), "edge.onnx"),
        samples=samples_of(held_out, wanted, CLASSES),
        test=samples_of(read_images(arguments.test, labels=CLASSES), wanted, CLASSES),
        labels=CLASSES,
        preprocess=rules,
        targets=TARGETS,
        cuts=CUTS,
        half=True,
    )
    prepared = prepare(recipe, arguments.out, replace_folder=arguments.replace, say=console.print)
    console.print(describe(prepared.bundle))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the CIFAR-10 bundle from the trained networks.")
    parser.add_argument("--models", type=Path, required=True, help="where full.onnx and edge.onnx are")
    parser.add_argument("--data", type=Path, required=True, help="training images: a folder or a zip")
    parser.add_argument("--test", type=Path, required=True, help="test images: a folder or a zip")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--replace", action="store_true", help="replace the folder if it exists")
    return parser.parse_args()


if __name__ == "__main__":
    main()
