"""Recipes: what a bundle cannot be made from is refused when it is written down."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core import trust
from inference_core.errors import InvalidInput
from inference_core.manifest import Manifest, TensorInfo
from toolchain.graph import Graph
from toolchain.recipe import MAX_LABEL, Exits, Recipe, Targets, check_labels, check_names
from toolchain.samples import Samples

X = np.zeros((20, 4), np.float32)
Y = np.arange(20, dtype=np.int64) % 2
GRAPH = Graph(
    b"",
    TensorInfo(name="x", datatype="FP32", shape=(4,)),
    TensorInfo(name="y", datatype="FP32", shape=(2,)),
    17,
    1,
    0,
    (),
)


def _recipe(**changes: Any) -> Recipe:
    return replace(Recipe("m", "1", GRAPH, Samples(X, Y, None), ("a", "b")), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "A"}, "model 'A' does not match"),
        ({"version": ""}, "version '' does not match"),
        ({"cuts": {"a b": ("x",)}}, "cut 'a b' does not match"),
        ({"labels": ("a",)}, "1 labels, the model has 2 outputs"),
        ({"labels": ("a", "a")}, "label 'a' is named more than once"),
        ({"labels": ("a", "\x1b[31m")}, r"label '\\x1b\[31m' is not 1 to"),
        ({"test": Samples(X, None, None)}, "either both .* have labels, or neither"),
        ({"samples": Samples(X, None, None), "test": Samples(X, Y, None)}, "either both"),
        ({"edge": GRAPH, "exits": Exits.ALWAYS}, "choose one of both"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    _recipe()
    with pytest.raises(InvalidInput, match=message):
        _recipe(**changes)


@pytest.mark.parametrize("name", ["gap", "confidence", "budget"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.1, math.nan, math.inf])
def test_what_is_certified_lies_between_0_and_1(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match="must lie between 0 and 1"):
        Targets(**{name: value})


@pytest.mark.parametrize("name", ["max_loss", "max_change"])
def test_what_may_be_lost_is_a_share(name: str) -> None:
    assert getattr(Targets(**{name: 0.0}), name) == 0
    assert getattr(Targets(**{name: 1.0}), name) == 1
    for value in (-0.01, 1.01, math.nan):
        with pytest.raises(InvalidInput, match="must be from 0 to 1"):
            Targets(**{name: value})


def test_the_budget_is_what_is_certified_where_there_is_one() -> None:
    assert Targets(gap=0.02).bound == 0.02
    assert Targets(gap=0.02, budget=0.3).bound == 0.3


@given(st.text(max_size=70))
def test_versions_are_those_that_a_manifest_takes(version: str) -> None:
    field = Manifest.model_fields["version"]
    (pattern,) = [rule.pattern for rule in field.metadata if hasattr(rule, "pattern")]
    try:
        check_names("m", version, ())
        passed = True
    except InvalidInput:
        passed = False
    assert pattern == r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"
    allowed = set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-")
    assert passed == (0 < len(version) <= 64 and set(version) <= allowed and version[0] not in "._-")


def test_the_longest_cut_that_passes_names_files_that_pass() -> None:
    check_names("m", "1", ["c" * 54])
    trust.check_file_name("head." + "c" * 54 + ".onnx")
    with pytest.raises(InvalidInput, match="longer than 54"):
        check_names("m", "1", ["c" * 55])


@pytest.mark.parametrize("label", ["", " ", "a\n", "\udcff", "x" * (MAX_LABEL + 1), "a\tb"])
def test_a_label_that_cannot_be_shown_is_refused(label: str) -> None:
    check_labels(("räksmörgås", "猫", "x" * MAX_LABEL, "two words"))
    with pytest.raises(InvalidInput, match="printable characters"):
        check_labels(("fine", label))
