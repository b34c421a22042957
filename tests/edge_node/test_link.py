"""What the estimator makes of links: steady, changing, lying, silent, and watched with a broken clock."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.link import Link

Road = Callable[[int], float]  # bytes up to seconds


class Traffic:
    """Sends messages over a made-up road and tells `link` of them, by a clock of its own."""

    def __init__(self, road: Road, seed: int = 0, noise: float = 0.03) -> None:
        self.link = Link()
        self.road = road
        self.now = 1000.0
        self._draw = random.Random(seed)
        self._noise = noise

    def send(self, up: int, cloud_s: float = 0.002, down: int = 300) -> float:
        """One exchange; what it took."""
        trip = self.link.depart(self.now, up, cloud_s)
        took = self.road(up) * (1 + abs(self._draw.gauss(0, self._noise)))
        self.now += took + cloud_s
        self.link.arrive(trip, self.now, down, cloud_s)
        return took

    def run(self, count: int, *sizes: int, pause_s: float = 0.1) -> None:
        for number in range(count):
            self.send(sizes[number % len(sizes)])
            self.now += pause_s

    def guess(self, up: int) -> float:
        return self.link.transfer(self.now, up, 300).seconds


def road(round_trip: float, rate: float) -> Road:
    return lambda up: round_trip + up / rate


WIFI, THREE_G = road(0.005, 2e6), road(0.15, 9.4e4)


def test_it_learns_a_road_and_tells_the_figures() -> None:
    traffic = Traffic(road(0.05, 1e6))
    traffic.run(100, 400, 1200, 60_000)
    estimate = traffic.link.estimate(traffic.now)
    assert estimate.round_trip == pytest.approx(0.05, rel=0.1)
    assert estimate.up == pytest.approx(1e6, rel=0.15)
    assert estimate.round_trip_spread < 0.1
    assert estimate.up_spread < 0.2
    assert not estimate.lost
    assert traffic.guess(20_000) == pytest.approx(0.07, rel=0.1)
    assert traffic.link.changes == 0


def test_the_clouds_own_time_is_not_the_links() -> None:
    traffic = Traffic(road(0.02, 1e7))
    for _ in range(40):
        traffic.send(1000, cloud_s=random.Random(traffic.now).uniform(0, 0.5))
    assert traffic.guess(1000) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(("before", "after"), [(WIFI, THREE_G), (THREE_G, WIFI)])
def test_a_change_is_known_after_three_transfers(before: Road, after: Road) -> None:
    traffic = Traffic(before)
    traffic.run(60, 900, 400)
    traffic.road = after
    traffic.run(3, 900)
    assert traffic.guess(900) == pytest.approx(after(900), rel=0.25)
    assert traffic.link.changes == 1


def test_one_stall_changes_nothing() -> None:
    traffic = Traffic(road(0.05, 1e6))
    traffic.run(60, 900, 400)
    traffic.road = road(0.3, 1e6)
    traffic.send(900)
    traffic.road = road(0.05, 1e6)
    traffic.run(3, 900)
    assert traffic.link.changes == 0
    assert traffic.guess(900) == pytest.approx(0.051, rel=0.25)


def test_noise_of_every_kind_rarely_looks_like_a_change() -> None:
    traffic = Traffic(road(0.05, 1e6), noise=0.3)
    traffic.run(2000, 900, 400)
    assert traffic.link.changes <= 20


def test_a_link_that_lies_is_found_out_by_the_first_large_message() -> None:
    def policed(up: int) -> float:
        return 0.01 + up / 1e7 if up < 20_000 else 0.01 + up / 1e5

    traffic = Traffic(policed)
    traffic.run(50, 400, 4000)
    small = traffic.guess(400)
    assert traffic.guess(256_000) < 0.2, "nothing has been seen yet of how slow it is"
    took = traffic.send(256_000)
    assert traffic.guess(256_000) > 0.5 * took
    traffic.run(2, 256_000)
    assert traffic.guess(256_000) == pytest.approx(policed(256_000), rel=0.2)
    traffic.run(6, 400)
    assert traffic.guess(400) == pytest.approx(small, rel=0.5)
    assert traffic.guess(256_000) > 0.5 * took, "small messages bring no trust in large ones"


def test_messages_wait_for_those_before_them() -> None:
    traffic = Traffic(road(0.02, 1e5))
    traffic.run(60, 1000, 20_000)
    alone = traffic.guess(1000)
    trip = traffic.link.depart(traffic.now, 20_000)
    assert traffic.guess(1000) == pytest.approx(alone + 0.2, rel=0.15)
    traffic.now += 0.22
    traffic.link.arrive(trip, traffic.now, 300, 0.0)
    assert traffic.guess(1000) == pytest.approx(alone, rel=0.1)


def test_an_overdue_answer_is_information_before_anybody_gives_up() -> None:
    traffic = Traffic(road(0.02, 1e6))
    traffic.run(60, 1000)
    trip = traffic.link.depart(traffic.now, 1000)
    assert not traffic.link.lost(traffic.now + 0.03)
    assert traffic.link.lost(traffic.now + 0.3)
    traffic.now += 0.3
    traffic.link.arrive(trip, traffic.now, 300, 0.0)
    assert not traffic.link.lost(traffic.now)


def test_a_time_out_says_at_least_so_slow_and_the_next_answer_ends_it() -> None:
    traffic = Traffic(road(0.02, 1e6))
    traffic.run(60, 1000)
    for _ in range(2):
        trip = traffic.link.depart(traffic.now, 1000)
        traffic.now += 0.5
        traffic.link.fail(trip, traffic.now)
    assert traffic.link.estimate(traffic.now).lost
    assert traffic.guess(1000) > 0.5
    traffic.send(1000)
    assert not traffic.link.estimate(traffic.now).lost
    traffic.run(2, 1000)
    assert traffic.guess(1000) == pytest.approx(0.021, rel=0.3)


def test_what_has_waited_out_an_outage_says_little_of_the_link() -> None:
    traffic = Traffic(road(0.05, 1e6))
    traffic.run(60, 400, 2000)
    stuck = traffic.link.depart(traffic.now, 400)
    traffic.now += 4.0
    assert traffic.link.lost(traffic.now)
    traffic.link.break_off(traffic.now)
    traffic.link.arrive(stuck, traffic.now, 300, 0.0)
    assert traffic.guess(2000) < 0.3
    for _ in range(10):
        traffic.send(2000)
        assert traffic.guess(2000) == pytest.approx(0.052, rel=0.4)


def test_a_link_a_hundred_times_as_slow_is_believed() -> None:
    traffic = Traffic(road(0.005, 1e6))
    traffic.run(60, 400, 2000)
    traffic.road = road(0.6, 4e5)
    traffic.run(3, 400)
    assert traffic.guess(400) == pytest.approx(0.6, rel=0.3)


def test_a_time_out_within_expectations_says_nothing() -> None:
    traffic = Traffic(road(0.5, 1e6))
    traffic.run(60, 1000)
    before = traffic.guess(1000)
    trip = traffic.link.depart(traffic.now, 1000)
    traffic.link.fail(trip, traffic.now + 0.2)
    assert traffic.link.transfer(traffic.now, 1000, 300).seconds == pytest.approx(before, rel=0.01)
    assert not traffic.link.lost(traffic.now + 0.2)


def test_a_broken_connection_is_a_lost_link() -> None:
    traffic = Traffic(WIFI)
    traffic.run(5, 1000)
    traffic.link.break_off(traffic.now)
    assert traffic.link.lost(traffic.now)


def test_what_is_abandoned_says_nothing() -> None:
    traffic = Traffic(WIFI)
    traffic.run(30, 1000)
    trip = traffic.link.depart(traffic.now, 1000)
    traffic.link.abandon(trip)
    traffic.link.arrive(trip, traffic.now + 50, 300, 0.0)
    assert not traffic.link.lost(traffic.now + 60)
    assert traffic.guess(1000) == pytest.approx(WIFI(1000), rel=0.15)


def test_age_is_shown_and_makes_unsure() -> None:
    assert Link().estimate(5.0).age == math.inf
    traffic = Traffic(WIFI)
    traffic.run(40, 400, 20_000)
    fresh, sure = traffic.link.estimate(traffic.now), traffic.link.transfer(traffic.now, 1000, 300)
    old = traffic.link.estimate(traffic.now + 600)
    assert fresh.age == pytest.approx(0.1, abs=0.01)
    assert old.age == pytest.approx(600.1, abs=0.01)
    assert old.round_trip_spread > 5 * fresh.round_trip_spread
    assert traffic.link.transfer(traffic.now + 600, 1000, 300).spread > 5 * sure.spread


@pytest.mark.parametrize("jump", [-3600.0, 3600.0, -1e9, 1e9, math.nan, math.inf])
def test_a_clock_that_jumps_breaks_nothing(jump: float) -> None:
    traffic = Traffic(WIFI)
    traffic.run(30, 1000)
    trip = traffic.link.depart(traffic.now, 1000)
    traffic.link.arrive(trip, traffic.now + jump, 300, 0.002)
    estimate = traffic.link.estimate(traffic.now + 0.1)
    assert estimate.age >= 0
    assert estimate.up > 0
    assert math.isfinite(traffic.link.transfer(traffic.now + 0.2, 1000, 300).seconds)
    traffic.now = max(traffic.now, traffic.now + (jump if math.isfinite(jump) and jump > 0 else 0)) + 1
    traffic.run(40, 1000)
    assert traffic.guess(1000) == pytest.approx(WIFI(1000), rel=0.2)


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(0, 10**10),
            st.floats(allow_nan=True, allow_infinity=True),
            st.sampled_from(["arrive", "fail", "abandon", "leave", "break_off"]),
        ),
        max_size=30,
    )
)
def test_nothing_it_is_told_breaks_it(events: list[tuple[float, int, float, str]]) -> None:
    link = Link()
    for at, up, cloud_s, what in events:
        trip = link.depart(at, up, cloud_s if math.isfinite(cloud_s) else 0.0)
        if what == "arrive":
            link.arrive(trip, at, up // 7, cloud_s)
        elif what == "fail":
            link.fail(trip, at + 1)
        elif what == "abandon":
            link.abandon(trip)
        elif what == "break_off":
            link.break_off(at)
        guess = link.transfer(at, up, 100)
        assert guess.seconds > 0
        assert guess.spread > 0
        estimate = link.estimate(at)
        assert min(estimate.round_trip, estimate.up, estimate.down) > 0
        assert estimate.age >= 0


def test_it_knows_what_is_under_way_and_when_something_was_sent() -> None:
    link = Link()
    assert (link.under_way, link.departed) == (0, -math.inf)
    first, second = link.depart(5.0, 100), link.depart(6.0, 100)
    assert (link.under_way, link.departed) == (2, 6.0)
    link.arrive(first, 7.0, 100, 0.0)
    link.abandon(second)
    assert (link.under_way, link.departed, link.heard) == (0, 6.0, 7.0)
