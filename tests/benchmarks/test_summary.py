"""The page's section on joint inference: tables, plots and aims, beside whatever else the page holds."""

from dataclasses import replace
from pathlib import Path

from benchmarks.conditions import PROFILES
from benchmarks.lanes import Record, Route
from benchmarks.phases import Phase, rows
from benchmarks.summary import section, targets, told

ROUTES = (Route("cloud only, JPEG", {}), Route("cascade", {}), Route("auto", {}, fixed=False))


def phase(profile: str, auto_ms: float) -> Phase:
    def records(ms: float, way: str, size: int) -> list[Record]:
        return [
            Record(n, n / 10, ms / 1000, True, "cloud", "low_confidence", way, size, None) for n in range(300)
        ]

    return Phase(
        "photos", [True] * 300, PROFILES[profile], ROUTES,
        {
            "cloud only, JPEG": records(100.0, "image", 1000),
            "cascade": records(50.0, "image", 250),
            "auto": records(auto_ms, "features.a.packed", 100),
        },
        {"cloud only, JPEG": 300_000, "cascade": 75_000, "auto": 30_000},
        dict.fromkeys(("cloud only, JPEG", "cascade", "auto"), 0.3),
    )  # fmt: skip


def test_the_section_holds_every_aim_every_table_and_the_plots(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n\nBy hand.\n")
    phases = [phase("3g", 30.0), phase("drive", 60.0)]
    lines = targets(phases)
    section(phases, lines, {"photos": "photos of things"}, page)
    text = page.read_text()
    assert text.startswith("# Benchmarks\n\nBy hand.\n")
    assert "### Photos of things" in text
    assert all(line.what in text for line in lines)
    assert "**3g** (" in text
    assert "| auto | 100.00% | 30.0 | 30.0 | 30.0 | 30.0 | 100 | 1.0 | features.a.packed 100% |" in text
    for name in ("joint-photos.svg", "joint-photos-drive.svg"):
        assert f"(figures/{name})" in text
        assert (tmp_path / "figures" / name).read_text().lstrip().startswith("<?xml")
    assert not (tmp_path / "figures" / "joint-photos-3g.svg").exists()


def test_what_is_missed_is_said(tmp_path: Path) -> None:
    lines = {line.what: line.met for line in targets([phase("3g", 30.0)])}
    assert set(lines.values()) == {True}
    assert len(lines) == 4
    slow = {line.what: line.met for line in targets([phase("3g", 53.0)])}
    assert (
        slow["photos over 3g: mean latency of auto against the best fixed route that keeps the gap"] is False
    )
    assert slow["photos over 3g: mean latency, cloud only, JPEG against auto"] is False
    fat = replace(phase("3g", 30.0), wire_up={"cloud only, JPEG": 300_000, "cascade": 75_000, "auto": 70_000})
    assert [line.met for line in targets([fat]) if "bytes up" in line.what] == [False]


def test_progress_is_one_line() -> None:
    line = told(rows(phase("3g", 30.0))[2])
    assert "\n" not in line
    assert "auto" in line
    assert "mean    30.0" in line
