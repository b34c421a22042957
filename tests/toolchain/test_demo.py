"""The demo, played for real with both services: complete, honest about failures, tidy when interrupted."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console

from inference_core.bundle import load_bundle
from inference_core.errors import InvalidInput
from tests.bundles import write_bundle
from tests.toolchain.edge import BLUE, RED, write_images
from toolchain.demo import Plan, Results, queries, render, run_demo
from toolchain.images import LabelledImage
from toolchain.outage import Phase, Timing
from toolchain.tally import Reply
from toolchain.ticker import Ticker

PLAN = Plan(timing=Timing(before_s=0.5, away_s=0.3, back_s=1.0))
# Of the blue ones the edge is not sure: 10 of 30 images.
IMAGES = [RED] * 20 + [BLUE] * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that names colours."""
    return write_bundle(tmp_path_factory.mktemp("demo") / "colors")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """What a whole demo found out."""
    return play(folder, IMAGES)


def play(folder: Path, images: list[LabelledImage]) -> Results:
    """The results of a demo, whose progress goes nowhere."""
    with Ticker(Console(file=io.StringIO())) as ticker:
        return asyncio.run(run_demo(load_bundle(folder), images, PLAN, ticker))


def shown(results: Results, folder: Path) -> str:
    """What the demo prints at its end."""
    console = Console(file=io.StringIO(), width=80)
    render(results, load_bundle(folder), PLAN, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_mode_is_measured_on_all_images(results: Results) -> None:
    assert [mode.name for mode in results.modes] == [
        *("edge only", "cloud only", "cascade", "split pixels", "split means")
    ]
    for mode in results.modes:
        assert mode.tally.sent == mode.tally.answered == len(IMAGES)


def test_the_modes_do_what_their_names_say(results: Results) -> None:
    edge, cloud, cascade, *splits = (mode.tally for mode in results.modes)
    assert (edge.at_edge, edge.bytes_up) == (1.0, 0)
    assert edge.accuracy == pytest.approx(2 / 3)
    assert cascade.at_edge == pytest.approx(2 / 3)
    for tally in (cloud, cascade, *splits):
        assert tally.accuracy == 1.0
        assert tally.bytes_up is not None
        assert tally.bytes_up > 0
    for tally in (cloud, *splits):
        assert tally.at_edge == 0.0


def test_every_request_of_the_outage_is_answered_and_escalations_resume(results: Results) -> None:
    outage = results.outage
    assert results.complete
    assert outage.total.sent == outage.total.answered >= 50
    assert outage.away_s >= PLAN.timing.away_s
    assert outage.resumed_s is not None
    assert outage.resumed_s < 2
    before, away, back = (outage.phases[phase].by_source() for phase in Phase)
    # Not "none of the others": answers come up to the kill, and the cloud answers before it is seen ready.
    assert min(before["cloud"], away["edge_fallback"], back["cloud"]) > 0


def test_the_results_are_one_table_and_the_outage(results: Results, folder: Path) -> None:
    text = shown(results, folder)
    assert "…" not in text  # nothing is cut off at 80 columns
    assert re.search(r"cascade +100\.00% +66\.7%( +\d+\.\d){3} +\d+ +\d+", text)
    assert "The cloud was killed under load" in text
    assert "stood in" not in text
    assert text.endswith(f"{results.sent} of {results.sent} requests of this demo were answered with 200.\n")


def test_a_request_that_was_not_answered_makes_the_demo_incomplete(results: Results, folder: Path) -> None:
    silent = Reply(0, 0, 0.1, 100, 0, "no answer: ReadError")
    broken = replace(results, modes=[replace(results.modes[0], replies=[silent, *results.modes[0].replies])])
    assert not broken.complete
    text = shown(broken, folder)
    assert "edge only: 1 x no answer: ReadError" in text
    assert f"{broken.sent - 1} of {broken.sent} requests" in text


def test_so_do_escalations_that_did_not_resume(results: Results) -> None:
    assert not replace(results, outage=replace(results.outage, resumed_s=None)).complete


def test_fallbacks_while_the_cloud_was_there_are_told(results: Results, folder: Path) -> None:
    fallback = replace(results.modes[1].replies[0], source="edge_fallback", reason="deadline", degraded=True)
    late = replace(results, modes=[replace(results.modes[1], replies=[fallback])])
    assert "cloud only: the edge stood in for the cloud: edge_fallback (deadline) 1" in shown(late, folder)


def test_an_answer_long_after_its_deadline_is_told(results: Results, folder: Path) -> None:
    late = replace(results.modes[0].replies[0], sent_s=0.0, done_s=0.26)
    told = replace(results, modes=[replace(results.modes[0], replies=[late])])
    assert told.complete
    assert "edge only: the slowest came 60 ms after its deadline: TOO LATE" in shown(told, folder)


def test_a_bundle_without_cuts_is_not_split(make_bundle: Callable[..., Path]) -> None:
    assert list(queries(load_bundle(make_bundle(cuts=())))) == ["edge only", "cloud only", "cascade"]


def test_what_cannot_be_shown_images_is_refused_before_anything_starts(
    make_bundle: Callable[..., Path],
) -> None:
    with pytest.raises(InvalidInput, match="takes tensors"):
        play(make_bundle(preprocess=False), IMAGES)
    with pytest.raises(InvalidInput, match="no images"):
        play(make_bundle(), [])


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """See that processes started by the test heed SIGINT, also where a shell runs the tests with `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(folder: Path, tmp_path: Path, name: signal.Signals) -> None:
    data = write_images(tmp_path / "images", each=3)
    command = [sys.executable, "-m", "toolchain", "demo", "--bundle", str(folder), "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as demo:
        assert demo.stderr is not None
        # `edge: process ...` is said when both run
        said = lines_until("edge: process", demo.stderr)
        demo.send_signal(name)
        rest = demo.stderr.read()
        assert demo.wait(20) == 128 + name
    pids = [int(pid) for pid in re.findall(r"process (\d+)", said)]
    assert Counter(map(is_running, pids)) == {False: 2}
    assert "Traceback" not in rest


def lines_until(start: str, file: IO[str]) -> str:
    """The lines of `file` to the first that begins with `start`, or to the last."""
    said = ""
    for line in file:
        said += line
        if line.startswith(start):
            break
    return said


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
