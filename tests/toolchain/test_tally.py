"""Counts, shares and percentiles of replies."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.tally import Reply, Tally, breakdown, figures, percentile

EDGE = Reply(10.0, 10.001, 10.004, 100, 200, source="edge", reason="confident", right=True, confidence=0.99)
CLOUD = replace(EDGE, done_s=10.021, source="cloud", reason="low_confidence", confidence=0.5, bytes_up=300)
FALLBACK = replace(CLOUD, source="edge_fallback", reason="deadline", degraded=True, right=False)
REFUSED = Reply(10.0, 10.0, 10.01, 100, 400, "400: body: empty")
SILENT = Reply(10.0, 10.0, 20.0, 100, 0, "no answer: ReadTimeout")


def test_a_reply_knows_what_the_device_waited_and_what_counts_against_the_deadline() -> None:
    assert EDGE.ms == pytest.approx(4.0)
    assert EDGE.open_ms == pytest.approx(3.0)


def test_every_request_is_counted_once() -> None:
    tally = Tally.of([EDGE, EDGE, CLOUD, FALLBACK, REFUSED, SILENT])
    assert (tally.sent, tally.answered, tally.refused, tally.unanswered) == (6, 4, 1, 1)
    assert tally.degraded == 1
    assert tally.answers == {
        ("edge", "confident"): 2,
        ("cloud", "low_confidence"): 1,
        ("edge_fallback", "deadline"): 1,
    }
    assert tally.by_source() == {"edge": 2, "cloud": 1, "edge_fallback": 1}
    assert tally.errors == {"400: body: empty": 1, "no answer: ReadTimeout": 1}


def test_shares_and_means_are_those_of_the_answers() -> None:
    tally = Tally.of([EDGE, EDGE, CLOUD, FALLBACK, SILENT])
    assert tally.accuracy == 0.75
    assert tally.at_edge == 0.75  # a fallback is the edge's own answer
    assert tally.bytes_up == 150
    assert tally.image_bytes == 100


def test_answers_to_images_without_a_known_label_say_nothing_about_accuracy() -> None:
    assert Tally.of([EDGE, replace(FALLBACK, right=None)]).accuracy == 1.0
    assert Tally.of([replace(EDGE, right=None)]).accuracy is None


def test_the_slowest_request_counts_even_when_it_was_not_answered() -> None:
    assert Tally.of([EDGE, SILENT]).slowest_ms == pytest.approx(10_000)


def test_without_answers_there_are_no_figures() -> None:
    tally = Tally.of([REFUSED])
    assert (tally.accuracy, tally.at_edge, tally.bytes_up, tally.percentiles_ms(0.5)) == (None,) * 4
    assert figures(tally) == ("-",) * 7


def test_figures_as_text() -> None:
    assert figures(Tally.of([EDGE, EDGE, EDGE, CLOUD])) == (
        *("100.00%", "75.0%"),
        *("4.0", "21.0", "21.0"),
        *("75", "100"),
    )


def test_breakdown_starts_with_the_most_frequent() -> None:
    assert breakdown(Tally.of([CLOUD, EDGE, EDGE]).answers) == "edge (confident) 2, cloud (low_confidence) 1"


@pytest.mark.parametrize(
    ("share", "value"), [(0.01, 1), (0.5, 50), (0.95, 95), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile(range(1, 101), share) == value


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    wanted = math.ceil(round(share * len(values), 9))
    assert found in ordered
    assert sum(value <= found for value in values) >= wanted
    assert sum(value < found for value in values) < wanted
