"""The rules of mode `auto`: estimates in, a way out."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.experience import Expected, Experience
from edge_node.link import Transfer
from edge_node.policy import Privacy
from edge_node.routes import (
    EXPLORED,
    Choice,
    Kind,
    Prospect,
    Sizes,
    Way,
    best,
    choose,
    edge_first,
    prospect,
    ways,
)

IMAGE, TENSOR = Way(Kind.IMAGE), Way(Kind.TENSOR)
THIN, PACKED = Way(Kind.FEATURES, "thin"), Way(Kind.FEATURES, "thin", packed=True)
SIZES = Sizes(image=900, tensor=12_000, features={"thin": 1000})
CLOUD_MS = {"image": 2.0, "tensor": 1.9, "features.thin": 0.5}


def known() -> Experience:
    experience = Experience(Expected(0.1, 0.3, {"thin": 1.8}, CLOUD_MS, 0.25))
    for _ in range(100):
        experience.packed["thin"].add(0.2)
        experience.overhead_bytes.add(200)
    return experience


def link(round_trip: float, rate: float, spread: float = 0.001) -> Callable[[int, int], Transfer]:
    return lambda up, down: Transfer(round_trip + up / rate + down / rate, spread)


def prospects(transfer: Callable[[int, int], Transfer], *open_ways: Way) -> list[Prospect]:
    return [
        prospect(way, SIZES, known(), transfer, decoded=True)
        for way in open_ways or (IMAGE, TENSOR, THIN, PACKED)
    ]


def taken(choice: Choice) -> Way:
    assert choice.taken is not None
    return choice.taken.way


def test_a_fast_link_takes_the_image_a_slow_one_the_packed_features() -> None:
    assert taken(choose(prospects(link(0.001, 1e8)), 1.0, draw=1)) == IMAGE
    assert taken(choose(prospects(link(0.15, 9e4)), 1.0, draw=1)) == PACKED
    assert taken(choose(prospects(link(0.15, 9e4), IMAGE, TENSOR), 1.0, draw=1)) == IMAGE


def test_a_prospect_counts_every_step() -> None:
    experience, transfer = known(), link(0.1, 1e5)
    there = prospect(THIN, SIZES, experience, transfer, decoded=True, made="thin")
    head = prospect(THIN, SIZES, experience, transfer, decoded=True)
    raw = prospect(THIN, SIZES, experience, transfer, decoded=False)
    assert head.seconds - there.seconds == pytest.approx(0.0018)
    assert raw.seconds - head.seconds == pytest.approx(0.0001)
    assert there.bytes_up == pytest.approx(1200, abs=2)
    assert there.seconds == pytest.approx(0.1 + there.bytes_up / 1e5 + 0.003 + 0.0005)
    image = prospect(IMAGE, SIZES, experience, transfer, decoded=False)
    assert image.seconds == prospect(IMAGE, SIZES, experience, transfer, decoded=True).seconds
    assert prospect(PACKED, SIZES, experience, transfer, decoded=True).bytes_up == pytest.approx(400, abs=3)


def test_nothing_is_taken_that_would_be_late() -> None:
    slow = prospects(link(0.15, 9e4, spread=0.02))
    assert choose(slow, 0.16, draw=0).taken is None
    assert taken(choose(slow, 0.19, draw=1)) == PACKED
    assert choose(slow, 0.17, draw=1, caution=3).taken is None
    assert len(choose(slow, 0.16, draw=0).prospects) == 4


def test_what_is_as_quick_may_as_well_be_smaller() -> None:
    quick, small = Prospect(IMAGE, 0.1, 0, 1100), Prospect(PACKED, 0.1015, 0, 400)
    assert best([quick, small], 1.0) is small
    assert best([quick, Prospect(PACKED, 0.104, 0, 400)], 1.0) is quick
    assert best([], 1.0) is None


def test_a_few_try_what_may_be_better_than_it_looks() -> None:
    quick, doubtful = Prospect(IMAGE, 0.1, 0.001, 1100), Prospect(TENSOR, 0.12, 0.06, 12_000)
    assert choose([quick, doubtful], 1.0, draw=EXPLORED / 2) == Choice(
        doubtful, (quick, doubtful), explored=True
    )
    assert taken(choose([quick, doubtful], 1.0, draw=EXPLORED)) == IMAGE
    assert taken(choose([quick, doubtful], 0.17, draw=0)) == IMAGE, "it might be late"
    dear = Prospect(TENSOR, 0.3, 0.2, 12_000)
    assert taken(choose([quick, dear], 1.0, draw=0)) == IMAGE, "a try may not cost much"
    certain = Prospect(TENSOR, 0.12, 0.01, 12_000)
    assert taken(choose([quick, certain], 1.0, draw=0)) == IMAGE, "there is nothing to learn"


def test_privacy_closes_ways() -> None:
    def kinds(privacy: Privacy) -> set[Kind]:
        return {way.kind for way in ways(image=True, cuts=("thin",), packs=True, privacy=privacy)}

    assert kinds(Privacy.ANY) == set(Kind)
    assert kinds(Privacy.FEATURES) == {Kind.FEATURES}
    assert kinds(Privacy.NOTHING) == set()


def test_ways_are_those_that_both_ends_know() -> None:
    names = [str(way) for way in ways(image=False, cuts=("a", "b"), packs=False, privacy=Privacy.ANY)]
    assert names == ["tensor", "features.a", "features.b"]
    packs = ways(image=True, cuts=("a",), packs=True, privacy=Privacy.ANY)
    assert [str(way) for way in packs] == ["image", "tensor", "features.a", "features.a.packed"]
    assert packs[-1].model == "features.a"


def test_the_edge_looks_first_unless_the_cloud_is_quicker_on_the_whole() -> None:
    after, direct = Prospect(IMAGE, 0.01, 0, 900), Prospect(IMAGE, 0.01, 0, 900)
    assert edge_first(0.001, 0.3, after, direct)
    assert not edge_first(0.012, 0.3, after, direct)
    assert edge_first(0.0001, 1.0, after, direct), "an answer in hand is worth something"
    assert not edge_first(0.004, 1.0, after, direct)
    assert edge_first(0.1, 1.0, None, direct)
    assert edge_first(0.1, 1.0, after, None)


TIMES = st.floats(0.0001, 10)


@given(st.lists(st.tuples(TIMES, TIMES, st.integers(1, 10**6)), max_size=6), TIMES, st.floats(0, 1))
def test_the_choice_is_always_in_time_and_never_much_slower(
    figures: list[tuple[float, float, int]], budget: float, draw: float
) -> None:
    every = [Prospect(Way(Kind.FEATURES, str(n)), *values) for n, values in enumerate(figures)]
    choice = choose(every, budget, draw=draw)
    in_time = [p for p in every if p.seconds + p.spread <= budget]
    assert (choice.taken is None) == (not in_time)
    if choice.taken is not None:
        assert choice.taken in in_time
        quickest = min(p.seconds for p in in_time)
        if not choice.explored:
            assert choice.taken.seconds <= max(1.02 * quickest, quickest + 0.0002) + 1e-12
