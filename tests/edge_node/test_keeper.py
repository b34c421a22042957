"""What a node keeps of the samples that it answers, and when it says so."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_node.keeper import Keeper
from edge_node.keeping import Reason
from edge_node.policy import Privacy
from edge_node.sample_store import Form
from inference_core.bundle import load_bundle
from inference_core.errors import CloudUnreachable
from inference_core.tensors import from_bytes
from tests.bundles import SURE, UNSURE, picture, pixels, write_bundle
from tests.edge_node.node import CloudSimulator, Node, node
from tests.edge_node.outbox import START, WITHIN_S, Box, box


@contextlib.contextmanager
def keeping(
    folder: Path,
    *bundles: Path,
    cloud: CloudSimulator | None = None,
    privacy: Privacy = Privacy.ANY,
    audit_rate: float = 0.0,
    draw: float = 0.5,
    **changes: Any,
) -> Iterator[tuple[Node, Box]]:
    with box(folder / "outbox.db") as one:
        keeper = Keeper(
            one.outbox, privacy=privacy, audit_rate=audit_rate, draw=lambda: draw, clock=lambda: one.now
        )
        with node(*bundles, cloud=cloud, keeper=keeper, privacy=privacy, **changes) as made:
            yield made, one


def reasons(one: Box) -> list[str]:
    """Why each sample was kept, once all that were handed over are on disk."""
    one.outbox.next().result(WITHIN_S)
    return [reason for (reason,) in one.rows("SELECT reason FROM samples ORDER BY number")]


async def test_fallbacks_and_unsure_answers_are_kept_and_the_cloud_s_are_not(
    tmp_path: Path, colors: Path, cloud: CloudSimulator
) -> None:
    with keeping(tmp_path, colors, cloud=cloud) as (edge, one):
        for mode in ("cascade", "cloud", "split"):
            assert (await edge.ask(picture(UNSURE), mode=mode)).source == "cloud"
        assert (await edge.ask(picture(SURE))).reason == "confident"
        assert reasons(one) == []
        cloud.absent = CloudUnreachable("no connection")
        assert (await edge.ask(picture(UNSURE))).kept is None
        await edge.ask(picture(UNSURE), mode="edge")
        await edge.ask(picture(SURE), mode="edge")
        assert reasons(one) == ["fallback", "low_confidence"]


async def test_a_sample_is_kept_with_all_that_is_known_of_it(tmp_path: Path, colors: Path) -> None:
    image, tensor = picture(UNSURE), pixels(UNSURE)
    with keeping(tmp_path, colors) as (edge, one):
        outcome = await edge.ask(image)
        found = one.outbox.next().result(WITHIN_S)
        assert found is not None
        sample, tries = found
        assert (sample.form, sample.payload, tries) == (Form.IMAGE, image, 0)
        assert (sample.model, sample.version, sample.digest) == ("colors", "1", load_bundle(colors).digest)
        assert (sample.reason, sample.promised, sample.kept_at) == (Reason.FALLBACK, False, START)
        assert (sample.edge, sample.threshold) == (outcome.edge, 0.8)
        assert len(bytes.fromhex(sample.key)) == 16
        one.outbox.forwarded(sample.key).result(WITHIN_S)
        await edge.ask(tensor)
        again = one.outbox.next().result(WITHIN_S)
        assert again is not None
        assert again[0].form is Form.TENSOR
        assert again[0].key != sample.key
        assert np.array_equal(from_bytes("input", "FP32", tensor.shape, again[0].payload), tensor)


@pytest.mark.parametrize(("draw", "kept"), [(0.19, ["audit"]), (0.2, [])])
async def test_a_share_of_the_confident_is_audited(
    tmp_path: Path, colors: Path, draw: float, kept: list[str]
) -> None:
    with keeping(tmp_path, colors, audit_rate=0.2, draw=draw) as (edge, one):
        await edge.ask(picture(SURE))
        await edge.ask(picture(SURE), threshold=0.1)  # no certificate speaks of that one
        assert reasons(one) == kept


async def test_who_asks_is_told_the_key_of_what_is_on_disk(
    tmp_path: Path, colors: Path, cloud: CloudSimulator
) -> None:
    with keeping(tmp_path, colors, cloud=cloud) as (edge, one):
        outcomes = [await edge.ask(picture(color), keep=True) for color in (SURE, UNSURE)]
        assert [outcome.source for outcome in outcomes] == ["edge", "cloud"]
        assert one.rows() == [(outcome.kept,) for outcome in outcomes]
        assert {reason for (reason,) in one.rows("SELECT reason FROM samples")} == {"requested"}
        assert all(0 < o.timings_ms["keep"] <= o.timings_ms["total"] for o in outcomes)


async def test_an_answer_does_not_wait_for_a_disk_beyond_its_deadline(tmp_path: Path, colors: Path) -> None:
    one = Box(tmp_path / "outbox.db")  # whose thread has not begun, as one that is stuck in the disk
    keeper = Keeper(one.outbox, privacy=Privacy.ANY, audit_rate=0)
    with node(colors, keeper=keeper) as edge:
        outcomes = [await edge.ask(picture(SURE), keep=True, deadline_ms=150) for _ in range(3)]
        assert {outcome.kept for outcome in outcomes} == {None}
        assert 100 < min(outcome.timings_ms["total"] for outcome in outcomes) < 150
        quick = await edge.ask(picture(UNSURE), deadline_ms=10_000)
        assert quick.timings_ms["total"] < 5000
    one.outbox.start()
    one.comes_to("depth", 4)
    assert one.outbox.close(WITHIN_S)


@pytest.mark.parametrize(
    ("privacy", "cuts", "kept"),
    [
        (Privacy.ANY, (), True),
        (Privacy.FEATURES, ("means",), True),
        (Privacy.FEATURES, (), False),
        (Privacy.NOTHING, ("means",), False),
    ],
)
async def test_what_may_never_leave_is_not_kept(
    tmp_path: Path, privacy: Privacy, cuts: tuple[str, ...], kept: bool
) -> None:
    folder = write_bundle(tmp_path / "colors", cuts=cuts)
    with keeping(tmp_path, folder, privacy=privacy, audit_rate=1) as (edge, one):
        for color in (SURE, UNSURE):
            outcome = await edge.ask(picture(color), keep=True)
            assert (outcome.kept is not None) is kept
        assert len(reasons(one)) == 2 * kept


async def test_a_model_may_be_left_out(tmp_path: Path, colors: Path) -> None:
    with keeping(tmp_path, colors, audit_rate=1, models={"colors": {"upload": "never"}}) as (edge, one):
        assert (await edge.ask(picture(UNSURE), keep=True)).kept is None
        assert reasons(one) == []


async def test_windows_that_hardly_change_are_not_kept(tmp_path: Path, colors: Path) -> None:
    calm = {"colors": {"change_threshold": 0.1}}
    window, other = pixels(UNSURE), pixels(UNSURE) + np.float32(0.05)
    with keeping(tmp_path, colors, models=calm) as (edge, one):
        for tensor in (window, other, window, pixels(UNSURE) + np.float32(0.3)):
            await edge.ask(tensor)
        await edge.ask(picture(UNSURE))  # an image is no window
        await edge.ask(picture(UNSURE))
        assert reasons(one) == ["fallback"] * 4


async def test_audits_are_drawn_by_lot_alone(tmp_path: Path, colors: Path) -> None:
    calm = {"colors": {"change_threshold": 0.1}}
    with keeping(tmp_path, colors, models=calm, audit_rate=1) as (edge, one):
        for _ in range(3):
            await edge.ask(pixels(SURE))
        assert (await edge.ask(pixels(UNSURE), keep=True)).kept
        assert (await edge.ask(pixels(UNSURE), keep=True)).kept
        assert reasons(one) == ["audit"] * 3 + ["fallback"] * 2
