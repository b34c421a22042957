"""Early exits: they learn what can be learnt, and the ONNX file answers as it did while it was taught."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from inference_core.engine import Engine
from tests.toolchain import networks
from toolchain.exits import Exit, grow_exit
from toolchain.runs import agreement, run
from toolchain.split import FEATURES, Split, split

Floats = NDArray[np.float32]
COUNT, CLASSES = 400, 5


def _halves(shapes: list[tuple[int, ...]], takes: tuple[int, ...]) -> Split:
    """A network that takes `takes` and is cut where it has tensors of `shapes`."""
    rng = np.random.default_rng(1)
    size = int(np.prod(takes))
    nodes, weights, flat = [helper.make_node("Flatten", ["input"], ["all"])], [], []
    for at, shape in enumerate(shapes):
        length = int(np.prod(shape))
        table = rng.standard_normal((size, length)) / np.sqrt(size)
        weights.append(numpy_helper.from_array(table.astype(np.float32), f"w{at}"))
        weights.append(numpy_helper.from_array(np.array([-1, *shape], np.int64), f"s{at}"))
        nodes.append(helper.make_node("MatMul", ["all", f"w{at}"], [f"m{at}"]))
        nodes.append(helper.make_node("Reshape", [f"m{at}", f"s{at}"], [f"cut{at}"]))
        nodes.append(helper.make_node("Tanh", [f"cut{at}"], [f"h{at}"]))
        nodes.append(helper.make_node("Flatten", [f"h{at}"], [f"f{at}"]))
        flat.append(f"f{at}")
    total = sum(int(np.prod(shape)) for shape in shapes)
    last = rng.standard_normal((total, CLASSES)).astype(np.float32)
    weights.append(numpy_helper.from_array(last, "last"))
    nodes.append(helper.make_node("Concat", flat, ["joined"], axis=1))
    nodes.append(helper.make_node("MatMul", ["joined", "last"], ["logits"]))
    x = _inputs(takes, seed=2)
    model = networks.finish(nodes, weights, list(takes), [CLASSES])
    return split(model, [f"cut{at}" for at in range(len(shapes))], x, x)


def _inputs(takes: tuple[int, ...], seed: int, count: int = COUNT) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, *takes)).astype(np.float32)


def _wanted(x: Floats) -> Floats:
    """Logits that are linear in the inputs."""
    flat = x.reshape(len(x), -1)
    table = np.random.default_rng(3).standard_normal((flat.shape[1], CLASSES))
    return np.asarray(3 * flat @ table, np.float32)


def _grow(halves: Split, x: Floats, wanted: Floats) -> Exit:
    return grow_exit(halves.head, halves.boundary, x, wanted, "logits")


def _answers(exit_: Exit, x: Floats) -> Floats:
    return run(Engine(exit_.model, name="exit"), {"input": x})["logits"]


KINDS = {
    "values": [(24,)],
    "steps": [(6, 8)],
    "picture": [(4, 6, 6)],
    "odd picture": [(3, 5, 7)],
    "a line of pixels": [(4, 1, 9)],
    "blocks": [(2, 2, 2, 3)],
    "several": [(8,), (2, 4, 4), (3, 5)],
}


@pytest.mark.parametrize("shapes", KINDS.values(), ids=KINDS.keys())
def test_the_file_answers_as_it_was_taught(shapes: list[tuple[int, ...]]) -> None:
    takes = (12,)
    halves, x = _halves(shapes, takes), _inputs(takes, seed=4)
    wanted = _wanted(x)
    grown = _grow(halves, x, wanted)
    given = run(Engine(grown.model, name="exit"), {"input": x})
    assert agreement(given["logits"], grown.logits) > 0.7  # which were each taught on three quarters

    # Beside the logits are the features as the head alone gives them.
    features = run(Engine(halves.head, name="head"), {"input": x})
    assert given.keys() == {"logits", *features}
    names = [FEATURES] if len(shapes) == 1 else [f"{FEATURES}.{at}" for at in range(len(shapes))]
    assert set(features) == set(names)
    for name, values in features.items():
        assert given[name].dtype == np.uint8
        assert np.abs(given[name].astype(int) - values.astype(int)).max() <= 1
    # The logits are first, as for any model.
    assert Engine(grown.model, name="exit").outputs[0].name == "logits"


def test_what_can_be_told_apart_linearly_is_learnt() -> None:
    takes = (12,)
    halves, x = _halves([(24,)], takes), _inputs(takes, seed=4, count=1200)
    grown = _grow(halves, x, _wanted(x))
    unseen = _inputs(takes, seed=5)
    assert agreement(_answers(grown, unseen), _wanted(unseen)) > 0.93
    assert agreement(grown.logits, _wanted(x)) > 0.93


def test_a_class_that_is_in_one_corner_of_a_picture_is_found() -> None:
    """The mean over all pixels says nothing here: the corners add up to nothing."""
    takes = (1, 4, 4)
    nodes = [
        helper.make_node("Mul", ["input", "two"], ["cut"]),
        helper.make_node("Flatten", ["cut"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    corners = np.zeros((16, 2), np.float32)
    corners[[0, 1, 4, 5], 0] = corners[[10, 11, 14, 15], 1] = 4
    weights = [
        numpy_helper.from_array(np.array(2, np.float32), "two"),
        numpy_helper.from_array(corners, "w"),
    ]
    x = _inputs(takes, seed=6)
    x -= x.mean(axis=(1, 2, 3), keepdims=True)
    halves = split(networks.finish(nodes, weights, list(takes), [2]), ["cut"], x, x)
    wanted = np.asarray(x.reshape(len(x), -1) @ corners, np.float32)
    assert agreement(_grow(halves, x, wanted).logits, wanted) > 0.9


def test_features_that_never_change_do_no_harm() -> None:
    takes = (12,)
    halves, x = _halves([(24,)], takes), np.zeros((40, 12), np.float32)
    wanted = np.tile(np.array([[1, 0, 0, 0, 2]], np.float32), (40, 1))
    grown = _grow(halves, x, wanted)
    assert np.isfinite(grown.logits).all()
    assert (grown.logits.argmax(axis=1) == 4).all()


@pytest.mark.parametrize("count", [4, 5, 8, 101])
def test_every_sample_is_answered_by_an_exit(count: int) -> None:
    takes = (12,)
    x = _inputs(takes, seed=7, count=count)
    assert _grow(_halves([(24,)], takes), x, _wanted(x)).logits.shape == (count, CLASSES)


def test_a_sample_is_answered_by_an_exit_that_was_not_taught_on_it() -> None:
    """What one part is taught wrongly, only the answers to the others show."""
    takes = (12,)
    halves, x = _halves([(24,)], takes), _inputs(takes, seed=8)
    wanted = _wanted(x)
    spoilt = wanted.copy()
    spoilt[3::4] = -spoilt[3::4]
    answers = _grow(halves, x, spoilt).logits
    assert agreement(answers[3::4], wanted[3::4]) > 0.75
    assert agreement(answers[3::4], spoilt[3::4]) < 0.1


def test_the_same_samples_grow_the_same_exit() -> None:
    takes = (12,)
    halves, x = _halves([(3, 5, 7)], takes), _inputs(takes, seed=4)
    first, second = (_grow(halves, x, _wanted(x)) for _ in range(2))
    assert first.model == second.model
