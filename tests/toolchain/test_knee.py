"""The knee: the rule of the choice, and that what is taken for the services' own is theirs."""

import math
from typing import Any

import pytest

from cloud_service.models import PROVIDERS as CLOUD_PROVIDERS
from cloud_service.settings import Settings as CloudSettings
from edge_node.model_slot import PROVIDERS as EDGE_PROVIDERS
from edge_node.settings import Settings as EdgeSettings
from edge_node.settings import load_settings
from inference_core.errors import InvalidInput
from toolchain import machine
from toolchain.knee import (
    CLOUD,
    EDGE,
    INLINE_MS,
    MAX_BATCH,
    MAX_THREADS,
    SERVINGS,
    Cell,
    check_grid,
    chosen_settings,
    knee,
    steps,
)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (12, (1, 2, 4, 8, 12)), (16, (1, 2, 4, 8, 16))],
)
def test_steps_are_powers_of_two_and_the_limit(limit: int, expected: tuple[int, ...]) -> None:
    assert steps(limit) == expected


KNEES: list[tuple[str, list[Cell], tuple[int, int]]] = [
    ("the only one", [Cell(1, 2, 1, 3.0)], (1, 1)),
    ("batching does not pay", [Cell(1, 1, n, 1.0 * n) for n in (1, 2, 4)], (1, 1)),
    # 1,000, 1,250, 1,429, 1,538 samples/s: 90 % of the best is 1,385
    ("batching pays up to 4", [Cell(1, 1, n, 0.6 * n + 0.4) for n in (1, 2, 4, 8)], (1, 4)),
    # 100 and 150 samples/s alone, 200 with two runs at a time
    ("more runs beat more threads", [Cell(1, 2, 1, 10.0), Cell(2, 1, 1, 10 / 1.5)], (1, 1)),
    # 200 and 190 samples/s: near enough, and nearly half as long
    ("threads shorten the run", [Cell(1, 2, 1, 10.0), Cell(2, 1, 1, 1000 / 190)], (2, 1)),
    ("just enough", [Cell(1, 1, 4, 4.0), Cell(1, 1, 1, 1 / 0.901)], (1, 1)),
    ("just too little", [Cell(1, 1, 4, 4.0), Cell(1, 1, 1, 1 / 0.89)], (1, 4)),
    ("as short: fewer threads", [Cell(4, 1, 1, 1.0), Cell(2, 1, 1, 1.0)], (2, 1)),
    ("as short: smaller batch", [Cell(1, 1, 2, 1.0), Cell(1, 1, 1, 1.0), Cell(1, 1, 1, 0.97)], (1, 2)),
    ("hardly longer counts as short", [Cell(2, 1, 1, 1.0), Cell(1, 1, 1, 1.04)], (1, 1)),
    ("clearly longer does not", [Cell(2, 1, 1, 1.0), Cell(1, 1, 1, 1.06)], (2, 1)),
]


@pytest.mark.parametrize(("cells", "expected"), [case[1:] for case in KNEES], ids=[case[0] for case in KNEES])
def test_the_knee(cells: list[Cell], expected: tuple[int, int]) -> None:
    for order in (cells, cells[::-1]):
        choice = knee(order)
        assert (choice.threads, choice.batch) == expected


def test_there_is_no_knee_of_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        knee([])


def test_the_rate_is_that_of_all_runs_together() -> None:
    assert Cell(1, at_a_time=3, batch=4, run_ms=6.0).rate == pytest.approx(2000)


def test_the_edge_runs_short_models_one_at_a_time_and_others_on_all_cores() -> None:
    edge, cloud = SERVINGS[EDGE], SERVINGS[CLOUD]
    assert edge.at_a_time(1, 8, INLINE_MS / 1000) == 1
    assert [edge.at_a_time(threads, 8, 0.01) for threads in (1, 2, 3, 8)] == [8, 4, 2, 1]
    assert [cloud.at_a_time(threads, 8, 10.0) for threads in (1, 2, 8)] == [1, 1, 1]


def test_the_settings_of_a_choice() -> None:
    choice = Cell(2, 1, 4, 1.0)
    assert chosen_settings(choice, EDGE, 6) == {"threads": 2, "workers": 3, "max_batch": 4}
    assert chosen_settings(choice, CLOUD, 6) == {"threads": 2, "max_batch_size": 4}
    assert chosen_settings(Cell(3, 1, 1, 1.0), EDGE, 2)["workers"] == 1


def test_what_is_taken_for_the_services_own_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_INLINE_MS", raising=False)
    # On one core a single run is under way in any case, however short.
    assert load_settings(None).inline_ms == (INLINE_MS if machine.cores() > 1 else 2.0)
    assert SERVINGS[EDGE].providers == EDGE_PROVIDERS
    assert SERVINGS[CLOUD].providers == CLOUD_PROVIDERS
    largest: dict[str, Any] = {"threads": MAX_THREADS, "workers": MAX_THREADS, "max_batch": MAX_BATCH}
    assert EdgeSettings(**largest).max_batch == MAX_BATCH
    with pytest.raises(ValueError, match="max_batch"):
        EdgeSettings(**largest | {"max_batch": MAX_BATCH + 1})
    largest = {"threads": MAX_THREADS, "max_batch_size": MAX_BATCH}
    assert CloudSettings(**largest).max_batch_size == MAX_BATCH
    too_many: dict[str, Any] = {"threads": MAX_THREADS + 1}
    for settings in (EdgeSettings, CloudSettings):
        with pytest.raises(ValueError, match="threads"):
            settings(**too_many)


@pytest.mark.parametrize(
    ("max_batch", "seconds", "said"),
    [
        (0, 1.0, "--max-batch: must be 1 to 256, got 0"),
        (257, 1.0, "--max-batch: must be 1 to 256, got 257"),
        (1, 0.0, "--seconds: must be 0.01 to 60, got 0"),
        (1, -1.0, "--seconds: must be 0.01 to 60, got -1"),
        (1, 61.0, "--seconds: must be 0.01 to 60, got 61"),
        (1, math.nan, "--seconds: must be 0.01 to 60, got nan"),
    ],
)
def test_a_grid_outside_the_limits_is_refused(max_batch: int, seconds: float, said: str) -> None:
    check_grid(1, 0.01)
    check_grid(256, 60.0)
    with pytest.raises(InvalidInput) as refused:
        check_grid(max_batch, seconds)
    assert str(refused.value) == said
