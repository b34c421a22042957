"""The digits' data: its preprocessing, and its test scans as files.

`python -m examples.digits.data --out DIR` writes the test scans as `DIR/<digit>/<number>.png`.
"""

import argparse
from pathlib import Path

from inference_core.manifest import TensorInfo
from inference_core.preprocess import Preprocess
from toolchain import rules
from toolchain.samples import Samples, Wanted, samples_of
from toolchain.scans import LABELS, Part, read_scans, write_scans


def read_preprocess() -> Preprocess:
    """The rules in `preprocess.yaml` beside this file, which the bundle ships too."""
    return rules.read_preprocess(Path(__file__).with_name("preprocess.yaml"))


def read_samples(part: Part) -> Samples:
    """The scans of one part, as the networks take them, with their digits as classes."""
    preprocess = read_preprocess()
    takes = TensorInfo(name="input", datatype="FP32", shape=preprocess.shape)
    return samples_of(read_scans(part), Wanted(takes, len(LABELS), preprocess), LABELS)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write scans of digits as PNGs, one folder per digit.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--part", type=Part, choices=list(Part), default=Part.TEST, help="default: test")
    arguments = parser.parse_args()
    count = write_scans(arguments.out, arguments.part)
    print(f"{count} scans written below {arguments.out}")


if __name__ == "__main__":
    main()
