"""Which model the edge serves: the cheapest exit that is good enough, among exits grown at every cut."""

from functools import cache

import numpy as np
import pytest

from tests.toolchain import families
from toolchain import pair
from toolchain.calibrate import calibrate, confidences, losses
from toolchain.cuts import Place, find_places
from toolchain.graph import Graph, check
from toolchain.pair import EXIT, LEAST_ANSWERED, MOST_HEAD, Kept, Part, grow_exits
from toolchain.runs import accuracy, agreement, run_model
from toolchain.split import split

SENSOR = next(family for family in families.FAMILIES if family.name == "conv1d")


@cache
def _graph() -> Graph:
    return check(SENSOR.build(), "sensor.onnx")


@cache
def _part(count: int) -> Part:
    x, classes = SENSOR.labelled(count, seed=4)
    return Part(x, classes, run_model(_graph().data, x))


@cache
def _kept() -> dict[str, Kept]:
    """The outputs of the three blocks, from the input on, and one place behind nearly all of the work."""
    x = _part(160).inputs
    places = find_places(_graph().data, x[:1], all_sizes=True)
    ends = [place for place in places if "maxpool" in place.tensors[0] and len(place.tensors) == 1]
    assert [place.head_share for place in ends] == sorted(place.head_share for place in ends)
    assert ends[-1].head_share > MOST_HEAD
    return {f"block{at}": Kept(split(_graph().data, end.tensors, x, x), end) for at, end in enumerate(ends)}


def test_the_first_exit_that_is_good_enough_is_chosen() -> None:
    part = _part(160)
    edge, rows = grow_exits(_kept(), _graph(), part, gap=0.05)
    assert [row.cut for row in rows] == ["block0", "block1"]
    good = [row.cut for row in rows if row.answered >= LEAST_ANSWERED]
    assert [row.cut for row in rows if row.chosen] == good[:1]
    assert edge is not None
    assert (edge.cut, edge.form.name, list(edge.forms)) == (good[0], EXIT, [EXIT])
    assert edge.seen.shape == part.full.shape


def test_the_figures_of_an_exit_are_those_of_its_file() -> None:
    edge, rows = grow_exits(_kept(), _graph(), _part(160), gap=0.05)
    assert edge is not None
    row = next(row for row in rows if row.chosen)
    part = _part(160)
    logits = part.logits(edge.form.data, _graph().output.name)
    assert row.accuracy == accuracy(edge.seen, part.classes) <= accuracy(logits, part.classes)
    assert row.agreement == agreement(edge.seen, part.full) <= agreement(logits, part.full)


def test_an_exit_behind_nearly_all_of_the_work_is_never_chosen() -> None:
    last = {"block2": _kept()["block2"]}
    edge, rows = grow_exits(last, _graph(), _part(160), gap=0.5)
    assert (edge, rows) == (None, ())


def test_a_few_samples_teach_nothing() -> None:
    assert grow_exits(_kept(), _graph(), _part(160).take(np.arange(15)), gap=0.5) == (None, ())
    assert grow_exits({}, _graph(), _part(160), gap=0.5) == (None, ())


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.1, 1.0])
def test_so_many_are_answered_that_the_next_would_be_one_loss_too_many(gap: float) -> None:
    part = _part(160)
    logits = part.full + 6 * np.random.default_rng(0).standard_normal(part.full.shape).astype(np.float32)
    share = pair._answered(logits, part, gap)
    rule = calibrate(logits, part.full, part.classes)
    confidence = confidences(logits, rule.temperature, rule.scorer)
    lost = losses(logits, part.full, part.classes)[np.argsort(-confidence, kind="stable")]
    answered = round(share * len(part))
    assert lost[:answered].sum() <= gap * len(part) + 1e-9
    assert answered == len(part) or lost[: answered + 1].sum() > gap * len(part)


def test_parts_keep_inputs_classes_and_answers_together() -> None:
    part = _part(160)
    rows = np.array([5, 1], np.int64)
    some = part.take(rows)
    assert len(some) == 2
    assert np.array_equal(some.inputs, part.inputs[rows])
    assert np.array_equal(some.classes, part.classes[rows])
    given = some.logits(_graph().data, _graph().output.name)
    np.testing.assert_allclose(given, part.full[rows], rtol=1e-3, atol=1e-3)
    assert isinstance(_kept()["block0"].place, Place)
