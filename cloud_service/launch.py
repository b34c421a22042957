"""The command `tandem-cloud`: `python -m cloud_service`, imports included."""

import runpy


def main() -> None:
    """Do what `python -m cloud_service` does."""
    runpy.run_module("cloud_service", run_name="__main__", alter_sys=True)
