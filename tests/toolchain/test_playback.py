"""`tandem device` against a real edge node."""

import asyncio
import io
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from inference_core.errors import InvalidInput
from tests.toolchain.edge import BLUE, BROKEN, RED, running_edge
from toolchain.authority import now
from toolchain.device import Access, EdgeFailed
from toolchain.images import LabelledImage
from toolchain.keygen import Wanted, make
from toolchain.playback import Playback, play_back, summary
from toolchain.tally import Tally


def play(playback: Playback, *images: LabelledImage) -> tuple[Tally, str]:
    """The tally of `playback`, and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    tally = asyncio.run(play_back(playback, images, console))
    assert isinstance(console.file, io.StringIO)
    return tally, console.file.getvalue()


def test_images_go_round_until_the_count_is_reached(edge: str) -> None:
    tally, lines = play(Playback(edge, None, 200, 9), RED, BLUE)
    assert tally.answers == {("edge", "confident"): 5, ("edge_fallback", "no_cloud"): 4}
    assert "9 answered: edge 5, cloud 0, fallback 4; failed 0; p50" in lines


def test_a_line_is_printed_every_second(edge: str) -> None:
    _, lines = play(Playback(edge, "colors", 20, 25), RED)
    assert len(lines.splitlines()) == 2
    assert lines.splitlines()[0].startswith("    1 s ")


def test_the_query_goes_along(edge: str) -> None:
    tally, _ = play(Playback(edge, None, 200, 3, {"mode": "edge"}), BLUE)
    assert tally.answers == {("edge", "mode"): 3}


def test_the_summary_names_what_was_refused(edge: str) -> None:
    tally, _ = play(Playback(edge, None, 200, 4), RED, BROKEN)
    text = "\n".join(summary(tally))
    assert "4 sent, 2 answered, 2 refused, 0 not answered" in text
    assert "edge (confident) 2" in text
    assert "accuracy   100.00%" in text
    assert "  2 x 400: " in text


class Interrupting(io.StringIO):
    """An output on which the first line is answered with Ctrl-C."""

    def write(self, text: str) -> int:
        """Take `text`, and press Ctrl-C if it is the first."""
        if not self.getvalue():
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_ctrl_c_ends_an_endless_playback_with_its_summary(edge: str) -> None:
    console = Console(file=Interrupting(), width=200)
    tally = asyncio.run(play_back(Playback(edge, None, 50, None), [RED], console))
    assert tally.sent == tally.answered >= 25


@pytest.mark.parametrize(("rate", "count"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_what_cannot_be_played_is_refused(rate: float, count: int) -> None:
    with pytest.raises(InvalidInput, match="must be"):
        Playback("http://127.0.0.1:1", None, rate, count)


def test_an_edge_that_asks_for_keys_is_played_to_with_one(tmp_path: Path) -> None:
    keys = make(tmp_path, Wanted([], [], ["camera"], timedelta(days=1)), now(), renew=False).keys
    guarded = {"API_KEYS": str(tmp_path / "devices.toml")}
    with running_edge(tmp_path / "colors", guarded) as url:
        tally, _ = play(Playback(url, None, 200, 3, {}, Access(keys["camera"])), RED)
        assert tally.answers == {("edge", "confident"): 3}
        with pytest.raises(EdgeFailed, match="401"):
            play(Playback(url, None, 200, 3, {}, Access("wrong")), RED)


def test_a_file_without_authorities_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.pem: holds no certificates"):
        Access("", tmp_path / "nowhere.pem").context()
