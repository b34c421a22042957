"""The line through transfer times: it finds what made them, and has an answer whatever it was told."""

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_node.regression import LEAST, PRIOR, Regression


def test_nothing_known_is_the_prior() -> None:
    line = Regression().line()
    assert line.at == pytest.approx(PRIOR)
    assert line.deviation(0, 0) > 0.1


def test_it_finds_round_trip_and_paces() -> None:
    draw = random.Random(1)
    regression = Regression()
    for _ in range(200):
        up, down = draw.choice([300, 5000, 80_000]), draw.choice([100, 40_000])
        seconds = 0.08 + up * 4e-6 + down * 1e-6
        regression.add(up, down, seconds * draw.uniform(0.97, 1.03), 0.03 * seconds)
    line = regression.line()
    assert line.at == pytest.approx((0.08, 4e-6, 1e-6), rel=0.05)
    assert line.seconds(10_000, 300) == pytest.approx(0.1203, rel=0.03)
    assert line.deviation(10_000, 300) < 0.002


def test_what_is_forgotten_makes_room_and_doubt() -> None:
    regression = Regression()
    for _ in range(50):
        regression.add(1000, 100, 0.2, 0.002)
    sure = regression.line().deviation(1000, 100)
    regression.forget(0.01)
    assert regression.line().deviation(1000, 100) > 5 * sure
    regression.restart()
    assert regression.line().deviation(1000, 100) > 0.1
    assert regression.line().seconds(1000, 100) == pytest.approx(0.2, rel=0.05)
    regression.add(1000, 100, 0.02, 0.002)
    assert regression.line().seconds(1000, 100) == pytest.approx(0.02, abs=0.003)


_BYTES = st.integers(0, 10**9)
_TRANSFER = st.tuples(_BYTES, _BYTES, st.floats(1e-6, 1e4), st.floats(0, 1e3), st.floats(0, 1))


@example([(10**9, 10**9, 1e-6, 1e-6, 1.0)])
@given(st.lists(_TRANSFER, max_size=20))
def test_no_transfers_break_it(transfers: list[tuple[int, int, float, float, float]]) -> None:
    regression = Regression()
    for up, down, seconds, deviation, kept in transfers:
        regression.add(up, down, seconds, deviation)
        regression.forget(kept)
        line = regression.line()
        assert all(value >= least for value, least in zip(line.at, LEAST, strict=True))
        assert math.isfinite(line.seconds(10**6, 10**6))
        assert line.deviation(10**6, 10**6) >= 0
