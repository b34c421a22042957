"""Progress: silent at first, one report at a time."""

import pytest

from toolchain import progress
from toolchain.progress import track


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_slow_work_reports_once_and_silences_what_it_contains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    for _ in track(range(3), "outer"):
        list(track(range(3), "inner"))
    assert capsys.readouterr().err == "outer: 0 of 3\n"


def test_an_abandoned_loop_lets_the_next_one_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", -1.0)
    abandoned = track(range(3), "first")
    next(abandoned)
    abandoned.close()
    list(track(range(2), "second"))
    assert capsys.readouterr().err.splitlines() == ["first: 0 of 3", "second: 0 of 2"]
