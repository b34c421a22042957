"""The benchmark of serving as it is run, cut short: real servers, and its section on the page."""

from pathlib import Path

import pytest

from benchmarks.serving import main, parse


def test_the_edge_is_measured_and_the_page_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.serving.CACHE", tmp_path / "cache")
    page = tmp_path / "page.md"
    page.write_text("# Mine\n")
    short = ["--rounds", "1", "--seconds", "0.7", "--clients", "1"]
    main([*short, "--parts", "tiny", "--peers", "--out", str(page)])
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert capsys.readouterr().out.strip() in text
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| "))
    }
    for name in ("device, tensor bytes", "OIP binary", "OIP JSON", "gRPC"):
        figures = rows[f"Tandem, {name}"]
        assert float(figures[0].replace(",", "")) > 0
        assert float(figures[2].replace(",", "")) > 0
        assert 50 < float(figures[7]) < 2000
    assert "Not measured, because it failed" not in text
    assert rows["tiny, ready"][2] in ("met", "**missed**")
    assert rows["mid, OIP JSON, 8 clients, share of raw"][2] == "not measured"


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--parts", "large"])
    assert "invalid choice: 'large'" in capsys.readouterr().err
    chosen = parse(["--set", "workers=2", "max_inflight=9", "--quick"])
    assert chosen.settings == {"workers": "2", "max_inflight": "9"}
    assert chosen.rounds == 1
