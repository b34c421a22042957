"""Makes the digits bundle from the trained networks.

`python -m examples.digits.build --models WORKDIR --out models/digits`, where WORKDIR is what
`examples.digits.train` wrote.
"""

import argparse
from pathlib import Path

from rich.console import Console

from examples.digits.data import read_preprocess
from toolchain.evaluate import render
from toolchain.prepare import Recipe, prepare
from toolchain.scans import LABELS, Part, read_scans

VERSION = "1"
# Where the full network is narrow: behind its first two blocks, under the exporter's names.
CUTS = {
    "block1": "/block1/block1.1/block1.1.2/Relu_output_0",
    "block2": "/block2/block2.2/block2.2.2/Relu_output_0",
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Quantize, split, calibrate and package the digits networks."
    )
    parser.add_argument("--models", type=Path, required=True, help="where full.onnx and edge.onnx are")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--replace", action="store_true", help="replace the folder if it exists")
    arguments = parser.parse_args()
    recipe = Recipe(
        model="digits",
        version=VERSION,
        preprocess=read_preprocess(),
        labels=LABELS,
        full=(arguments.models / "full.onnx").read_bytes(),
        edge=(arguments.models / "edge.onnx").read_bytes(),
        cuts=CUTS,
        calibration=read_scans(Part.CALIBRATION),
        test=read_scans(Part.TEST),
    )
    _, figures = prepare(recipe, arguments.out, replace_folder=arguments.replace)
    Console().print(render(figures))


if __name__ == "__main__":
    main()
