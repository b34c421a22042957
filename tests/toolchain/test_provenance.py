"""Provenance: plain values that say which versions, machine, seed and targets made a bundle."""

import json
import platform
from importlib.metadata import version

import pytest

from tests.toolchain.test_recipe import _recipe
from toolchain.provenance import provenance
from toolchain.recipe import Targets


def test_it_names_versions_machine_seed_and_targets() -> None:
    made = provenance(_recipe(seed=7, targets=Targets(gap=0.05, budget=0.2)))
    assert made["versions"]["onnxruntime"] == version("onnxruntime")
    assert made["versions"]["tandem-inference"] == version("tandem-inference")
    assert made["machine"] == platform.machine()
    assert made["seed"] == 7
    assert (made["targets"]["gap"], made["targets"]["budget"]) == (0.05, 0.2)
    assert json.loads(json.dumps(made)) == made


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="only told by Linux on x86-64"
)
def test_vnni_is_told_where_it_can_be() -> None:
    assert provenance(_recipe())["vnni"] in (True, False)
