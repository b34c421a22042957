"""The page of figures: each benchmark replaces its own section and nothing else."""

import os
from pathlib import Path

import pytest

from benchmarks.page import machine, replace_section


def test_a_page_is_made_and_a_section_replaced(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    replace_section(page, "serving", "## Serving\n\nfast\n")
    replace_section(page, "joint", "## Joint\n")
    page.write_text(page.read_text().replace("# Benchmarks\n", "# Benchmarks\n\nBy hand.\n") + "\nThe end.\n")
    replace_section(page, "serving", "## Serving\n\nfaster")
    assert page.read_text() == (
        "# Benchmarks\n\nBy hand.\n\n<!-- serving:begin -->\n## Serving\n\nfaster\n<!-- serving:end -->\n\n"
        "<!-- joint:begin -->\n## Joint\n<!-- joint:end -->\n\nThe end.\n"
    )
    assert [path.name for path in page.parent.iterdir()] == ["page.md"]


def test_backslashes_are_kept_as_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    replace_section(page, "a", "1")
    replace_section(page, "a", r"\1 \g<0>")
    assert r"\1 \g<0>" in page.read_text()


@pytest.mark.parametrize(
    "broken",
    [
        "<!-- a:begin -->\n",
        "<!-- a:end -->\n<!-- a:begin -->\n",
        "<!-- a:begin -->\n<!-- a:end -->\n<!-- a:begin -->\n<!-- a:end -->\n",
    ],
)
def test_broken_markers_are_refused_and_the_page_left(tmp_path: Path, broken: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(broken)
    with pytest.raises(ValueError, match="must come once each"):
        replace_section(page, "a", "text")
    assert page.read_text() == broken


@pytest.mark.parametrize(("name", "text"), [("A b", "x"), ("", "x"), ("a", "<!-- a:end -->")])
def test_a_bad_section_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match="section"):
        replace_section(tmp_path / "page.md", name, text)
    assert not (tmp_path / "page.md").exists()


def test_the_machine_is_described() -> None:
    said = machine()
    cores = len(os.sched_getaffinity(0))
    assert said.startswith(f"{cores} core")
    assert "ONNX Runtime 1." in said
    assert "GiB" in said
