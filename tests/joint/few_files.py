"""Runs a service that may have only so many files open: `python -m tests.joint.few_files LIMIT module`."""

import resource
import runpy
import sys


def main(limit: str, module: str) -> None:
    """Lower the limit for good and become the module."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
