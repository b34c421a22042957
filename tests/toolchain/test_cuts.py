"""Where a model can be cut: the halves are the whole, and what a place costs is what really crosses it."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from inference_core.engine import Engine
from tests.toolchain import families, networks
from tests.toolchain.families import FAMILIES, Family
from toolchain.cuts import KEPT, LEAST_TAIL, Place, Surveyed, best, find_places, survey
from toolchain.graph import fold
from toolchain.runs import run, run_model
from toolchain.split import cut

CUTTABLE = {"resnet", "densenet", "inception", "mobilenet", "vit", "bert", "conv1d", "lstm", "mlp"}
every_family = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name in CUTTABLE], ids=lambda family: family.name
)


@cache
def _folded(family: Family) -> bytes:
    return fold(family.build())


@cache
def _places(family: Family) -> tuple[Place, ...]:
    return tuple(find_places(_folded(family), family.inputs(1, seed=1), all_sizes=True))


def _named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


# ---- places


@every_family
def test_at_every_place_the_halves_are_the_whole(family: Family) -> None:
    model, x = _folded(family), family.inputs(3, seed=2)
    wanted = run_model(model, x)
    places = _places(family)
    assert places
    for place in places[:: max(1, len(places) // 8)]:
        head, tail, boundary = cut(model, place.tensors)
        assert tuple(info.shape for info in boundary) == place.shapes
        engine = Engine(head, name="head")
        features = run(engine, {engine.inputs[0].name: x})
        assert sum(array[0].size for array in features.values()) == place.elements
        (logits,) = run(Engine(tail, name="tail"), features).values()
        np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-3)


@every_family
def test_places_go_from_input_to_output_and_have_names_of_their_own(family: Family) -> None:
    places = _places(family)
    shares = [place.head_share for place in places]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    assert len({place.name for place in places}) == len({place.tensors for place in places}) == len(places)
    assert find_places(_folded(family), family.inputs(1, seed=3), all_sizes=True) == list(places)


def test_a_residual_block_is_cut_with_two_tensors() -> None:
    (two,) = [place for place in _places(_named("resnet")) if len(place.tensors) == 2][:1]
    assert len(two.shapes) == 2
    assert two.elements == sum(math.prod(shape) for shape in two.shapes)


def test_every_branch_of_an_inception_block_crosses() -> None:
    crossing = [len(place.tensors) for place in _places(_named("inception"))]
    assert max(crossing) >= 4
    assert crossing.count(1) >= 4


def test_only_what_sends_no_more_than_the_input_is_a_place_unless_told_otherwise() -> None:
    model, x = networks.full_network(), networks.inputs(1)
    assert find_places(fold(model), x) == []  # 12 channels of 8 x 8 as bytes, for 256 bytes of input
    assert {place.tensors for place in find_places(fold(model), x, all_sizes=True)} >= {("inner",)}
    small = find_places(_folded(_named("resnet")), _named("resnet").inputs(1, seed=1))
    assert 0 < len(small) < len(_places(_named("resnet")))
    assert max(place.elements for place in small) <= 4 * 3 * 32 * 32


def test_nothing_is_cut_before_the_input_is_consumed_or_at_the_output() -> None:
    """`late` takes the input once more, so that there is no place before it."""
    nodes = [
        helper.make_node("Relu", ["input"], ["early"]),
        helper.make_node("MatMul", ["early", "w"], ["middle"]),
        helper.make_node("Add", ["middle", "input"], ["late"]),
        helper.make_node("MatMul", ["late", "w"], ["logits"]),
    ]
    model = fold(networks.finish(nodes, [_square("w")], [4], [4]))
    assert [place.tensors for place in find_places(model, np.ones((1, 4), np.float32))] == [("late",)]


def test_what_crosses_is_real_and_has_the_batch_first() -> None:
    """`where` and `turned` would be smaller, but one is no FP32 and the other has its batch at the end."""
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["wide"]),
        helper.make_node("Greater", ["wide", "zero"], ["where"]),
        helper.make_node("Cast", ["where"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["real"], ["turned"], perm=[1, 0]),
        helper.make_node("Sqrt", ["turned"], ["rooted"]),
        helper.make_node("Transpose", ["rooted"], ["back"], perm=[1, 0]),
        helper.make_node("MatMul", ["back", "w"], ["logits"]),
    ]
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    model = fold(networks.finish(nodes, [_square("w"), zero], [4], [4]))
    found = [place.tensors for place in find_places(model, np.ones((1, 4), np.float32))]
    assert found == [("wide",), ("real",), ("back",)]


def _square(name: str) -> TensorProto:
    values = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    return numpy_helper.from_array(values, name)


# ---- work


def test_work_is_counted_in_multiply_adds() -> None:
    channels, inner = networks.CHANNELS, (networks.CHANNELS, 8, 8)
    first, second, last = channels * 64 * 9, channels * 64 * channels * 9, 3 * channels * 64
    places = find_places(fold(networks.full_network()), networks.inputs(1), all_sizes=True)
    shares = {place.tensors: place.head_share for place in places}
    total = first + second + last
    assert shares["inner",] == pytest.approx(first / total)
    assert shares["r2",] == pytest.approx((first + second) / total)
    assert {place.shapes for place in places} >= {(inner,)}


def test_the_first_layer_of_a_table_counts() -> None:
    work = [20 * 64, 64 * 64, 64 * 10]
    places = _places(_named("mlp"))
    assert places[0].head_share == pytest.approx(work[0] / sum(work))
    assert places[-1].head_share == pytest.approx(sum(work[:2]) / sum(work))


def test_every_step_of_a_recurrence_counts() -> None:
    steps, channels = families.SEQUENCE
    first, second = (steps * 4 * 32 * (inside + 32) for inside in (channels, 32))
    shares = {round(place.head_share, 4) for place in _places(_named("lstm"))}
    total = first + second + 32 * 10
    assert {round(first / total, 4), round((first + second) / total, 4)} & shares


# ---- sizes


def test_sizes_are_those_of_real_features_behind_zstd() -> None:
    family = _named("resnet")
    x = family.inputs(5, seed=4)
    places = [place for place in _places(family) if len(place.tensors) == 2][:1] + list(_places(family)[:1])
    for one in survey(_folded(family), places, x):
        assert (one.raw, one.stored) == (4 * one.place.elements, one.place.elements)
        assert one.compressed == pytest.approx(_zstd(_folded(family), one.place, x), abs=0.5)
        assert one.compressed != one.stored
        assert min(one.head_ms, one.tail_ms) > 0


def _zstd(model: bytes, place: Place, x: families.Inputs) -> float:
    """Mean bytes of the features of one sample at `place`, each tensor in 256 steps of its own range."""
    loaded = onnx.load_from_string(model)
    known = {value.name: value for value in loaded.graph.value_info}
    loaded.graph.output.extend(known[name] for name in place.tensors)
    seen = Engine(loaded.SerializeToString(), name="model").run({"input": x})
    sizes = []
    for row in range(len(x)):
        data = b""
        for name in place.tensors:
            values = seen[name][row].astype(np.float64)
            low, high = min(0, values.min()), max(0, values.max())
            data += np.rint((values - low) * 255 / (high - low)).astype(np.uint8).tobytes()
        sizes.append(len(zstandard.ZstdCompressor(level=3).compress(data)))
    return float(np.mean(sizes))


# ---- the choice

figures = st.tuples(
    st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.985, 0.995, 1.0]), st.integers(1, 5000)
)


def _surveyed(figures: list[tuple[float, int]], ms: float = 1.0) -> list[Surveyed]:
    return [
        Surveyed(Place(f"at{at}", (f"t{at}",), ((size,),), share), 4 * size, size, size, ms * at, ms)
        for at, (share, size) in enumerate(figures)
    ]


@given(st.lists(figures, max_size=30), st.integers(1, 6))
def test_no_place_that_is_chosen_is_beaten_in_both(found: list[tuple[float, int]], count: int) -> None:
    surveyed = _surveyed(found)
    chosen = best(surveyed, count)
    assert len(chosen) <= count
    assert len({one.place.name for one in chosen}) == len(chosen)
    for one in chosen:
        assert one.place.head_share <= 1 - LEAST_TAIL
        for other in surveyed:
            assert not (
                other.place.head_share < one.place.head_share and other.compressed <= one.compressed
            ), (one, other)
            assert not (
                other.place.head_share <= one.place.head_share and other.compressed < one.compressed
            ), (one, other)


@given(st.lists(figures, max_size=30), st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_time_decides(found: list[tuple[float, int]], random: object) -> None:
    found = sorted(set(found))
    slow = [replace(one, head_ms=1000.0 / (1 + one.raw)) for one in _surveyed(found)]
    random.shuffle(slow)  # type: ignore[attr-defined]
    wanted = [one.place for one in best(_surveyed(found))]
    assert [one.place for one in best(slow)] == wanted


def test_something_is_chosen_wherever_there_is_a_place() -> None:
    assert best([]) == []
    assert len(best(_surveyed([(0.5, 100)]))) == 1
    many = best(_surveyed([(at / 50, 2 ** (20 - at // 3)) for at in range(49)]))
    assert len(many) == KEPT
    assert (many[0].place.name, many[-1].compressed) == ("at0", 2**4)
