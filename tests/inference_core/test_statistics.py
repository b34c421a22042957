"""What a model has served, counted."""

import threading
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_core.statistics import Statistics


def test_nothing_yet() -> None:
    document = Statistics().document()
    assert (document["last_inference"], document["inference_count"], document["execution_count"]) == (0, 0, 0)
    assert document["batch_stats"] == []
    assert set(document["inference_stats"]) == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"),
        *("cache_hit", "cache_miss"),
    }
    assert all(of == {"count": 0, "ns": 0} for of in document["inference_stats"].values())


def test_answers_failures_and_runs() -> None:
    now = [1_700_000_000.5]
    statistics = Statistics(lambda: now[0])
    statistics.success(3, 0.010, 0.001, 0.002, 0.003, 0.004)
    now[0] += 1
    statistics.success(1, 0.005, 0.0, 0.001, 0.002, 0.001)
    now[0] += 1
    statistics.fail(0.5)
    statistics.executed(4, 0.003, 0.001, 0.002)
    statistics.executed(1, 0.001)
    statistics.executed(4, 0.004)
    document = statistics.document()
    assert document["last_inference"] == 1_700_000_001_500  # of the last answer, not of the failure
    assert (document["inference_count"], document["execution_count"]) == (4, 3)
    assert document["inference_stats"] == {
        "success": {"count": 2, "ns": 15_000_000},
        "fail": {"count": 1, "ns": 500_000_000},
        "queue": {"count": 2, "ns": 1_000_000},
        "compute_input": {"count": 2, "ns": 3_000_000},
        "compute_infer": {"count": 2, "ns": 5_000_000},
        "compute_output": {"count": 2, "ns": 5_000_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert document["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 1, "ns": 0},
            "compute_infer": {"count": 1, "ns": 1_000_000},
            "compute_output": {"count": 1, "ns": 0},
        },
        {
            "batch_size": 4,
            "compute_input": {"count": 2, "ns": 1_000_000},
            "compute_infer": {"count": 2, "ns": 7_000_000},
            "compute_output": {"count": 2, "ns": 2_000_000},
        },
    ]


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), max_size=50))
def test_sums(requests: list[tuple[int, float]]) -> None:
    statistics = Statistics()
    for rows, seconds in requests:
        statistics.success(rows, seconds, seconds, seconds, seconds, seconds)
        statistics.executed(rows, seconds)
    document = statistics.document()
    assert document["inference_count"] == sum(rows for rows, _ in requests)
    assert document["execution_count"] == len(requests)
    total = sum(seconds for _, seconds in requests) * 1e9
    for of in (document["inference_stats"][name] for name in ("success", "queue", "compute_infer")):
        assert of["count"] == len(requests)
        assert of["ns"] == pytest.approx(total, rel=1e-9, abs=1)
    assert [run["batch_size"] for run in document["batch_stats"]] == sorted({rows for rows, _ in requests})
    assert sum(run["compute_infer"]["count"] for run in document["batch_stats"]) == len(requests)


def test_clock_that_went_back_makes_no_negative_duration() -> None:
    statistics = Statistics()
    statistics.success(1, -1.0, -1.0, 0.0, 0.0, 0.0)
    assert statistics.document()["inference_stats"]["success"] == {"count": 1, "ns": 0}


def test_threads_do_not_lose_each_others_counts() -> None:
    statistics = Statistics()
    start = threading.Barrier(4)

    def tell() -> None:
        start.wait(30)
        for _ in range(5000):
            statistics.success(2, 1e-3, 0.0, 0.0, 0.0, 0.0)
            statistics.executed(2, 1e-3)
            statistics.fail(1e-3)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    document = statistics.document()
    assert (document["inference_count"], document["execution_count"]) == (40_000, 20_000)
    assert document["inference_stats"]["fail"]["count"] == 20_000


def test_recording_a_request_costs_microseconds() -> None:
    statistics = Statistics()
    best = min(
        timeit.repeat(lambda: statistics.success(1, 1e-3, 0.0, 0.0, 1e-3, 0.0), number=10_000, repeat=5)
    )
    assert best / 10_000 < 20e-6  # about 1 us on an idle machine
