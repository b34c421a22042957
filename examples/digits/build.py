"""Makes the digits bundle from the trained networks: what `tandem prepare` does, on the scans.

`python -m examples.digits.build --models WORKDIR --out models/digits`, where WORKDIR is what
`examples.digits.train` wrote.
"""

import argparse
from pathlib import Path

from rich.console import Console

from examples.digits.data import read_preprocess, read_samples
from toolchain.graph import check, read_model
from toolchain.inspection import describe
from toolchain.prepare import prepare
from toolchain.recipe import Recipe, Targets
from toolchain.scans import LABELS, Part

VERSION = "2"
# Where the full network is narrow: behind its first two blocks, under the exporter's names.
CUTS = {
    "block1": ("/block1/block1.1/block1.1.2/Relu_output_0",),
    "block2": ("/block2/block2.2/block2.2.2/Relu_output_0",),
}
# The 280 scans to certify on cannot show a gap of 1 %, which takes 299.
TARGETS = Targets(gap=0.02, confidence=0.95)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the digits bundle from the trained networks.")
    parser.add_argument("--models", type=Path, required=True, help="where full.onnx and edge.onnx are")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--replace", action="store_true", help="replace the folder if it exists")
    arguments = parser.parse_args()
    console = Console()
    recipe = Recipe(
        model="digits",
        version=VERSION,
        full=check(read_model(arguments.models / "full.onnx"), "full.onnx"),
        edge=check(read_model(arguments.models / "edge.onnx"), "edge.onnx"),
        samples=read_samples(Part.CALIBRATION),
        test=read_samples(Part.TEST),
        labels=LABELS,
        preprocess=read_preprocess(),
        targets=TARGETS,
        cuts=CUTS,
    )
    prepared = prepare(recipe, arguments.out, replace_folder=arguments.replace, say=console.print)
    console.print(describe(prepared.bundle))


if __name__ == "__main__":
    main()
