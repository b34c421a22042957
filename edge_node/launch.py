"""The command `tandem-edge`: `python -m edge_node`, imports included."""

import runpy


def main() -> None:
    """Do what `python -m edge_node` does."""
    runpy.run_module("edge_node", run_name="__main__", alter_sys=True)
