"""The digits' data: its preprocessing, and its test scans as files.

`python -m examples.digits.data --out DIR` writes the test scans as `DIR/<digit>/<number>.png`.
"""

import argparse
from pathlib import Path

import yaml

from inference_core.preprocess import Preprocess
from toolchain.scans import Part, write_scans


def read_preprocess() -> Preprocess:
    """The rules in `preprocess.yaml` beside this file, which the bundle ships too."""
    text = Path(__file__).with_name("preprocess.yaml").read_text(encoding="utf-8")
    return Preprocess.model_validate(yaml.safe_load(text))


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
