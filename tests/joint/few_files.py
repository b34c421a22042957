"""Runs a service that may have few files open: `python -m tests.joint.few_files SOFT[:HARD] module`."""

import resource
import runpy
import sys


def main(limit: str, module: str) -> None:
    """Lower the limits and become the module."""
    soft, _, hard = limit.partition(":")
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard or soft)))
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
