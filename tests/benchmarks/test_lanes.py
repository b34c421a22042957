"""Lanes against real services: every route answers over its own link, and records say what happened."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.conditions import Conditions
from benchmarks.lanes import Lanes, Record, Route, Sample, keep_pace, take_turns
from tests.bundles import SURE, UNSURE, picture, write_bundle


def _by_auto(turns: Mapping[str, Sequence[Record]]) -> set[str]:
    """Who answered what only the cloud knows."""
    return {r.source for r in turns["auto"] if r.sample == 1}


SAMPLES = [(0, Sample(picture(SURE), "image/png", 0)), (1, Sample(picture(UNSURE), "image/png", 2))]


@pytest.mark.timeout(120)
def test_each_route_by_its_own_link(tmp_path: Path) -> None:
    routes = [
        Route("edge only", {"mode": "edge"}),
        Route("cascade", {"mode": "cascade"}),
        Route("raw", {"mode": "cloud"}, {"PAYLOAD": "tensor"}),
        Route("random", {}, share=0.5),
        Route("auto", {"mode": "auto"}, fixed=False),
    ]

    async def both() -> None:
        async with Lanes(write_bundle(tmp_path / "colors"), routes, deadline_ms=5000) as lanes:
            lanes.links.set(Conditions(0.05, 1e8, 1e8))
            for _ in range(3):  # the machine may have stood still for longer than the link is given
                turns = await take_turns(lanes.lanes, SAMPLES * 5, 60.0)
                if _by_auto(turns) == {"cloud"}:
                    break
            up = {route.name: count.up for route, count in zip(routes, lanes.links.counts(), strict=True)}
            paced = await keep_pace(lanes.lanes, SAMPLES * 10, 0.03)
            assert all(lane.cpu_s > 0 for lane in lanes.lanes)
        for records in (turns, paced):
            assert [r.sample for r in records["cascade"]] == [0, 1] * (len(records["cascade"]) // 2)
            cascade = records["cascade"]
            assert {(r.sample, r.source, r.right) for r in cascade} == {(0, "edge", True), (1, "cloud", True)}
            assert all(r.seconds > 0.05 for r in cascade if r.source == "cloud")
            assert all(r.source == "edge" and r.bytes_up == 0 for r in records["edge only"])
            assert {r.right for r in records["edge only"] if r.sample == 1} == {False}
            assert {r.way for r in records["raw"]} == {"tensor"}
            assert {r.source for r in records["random"]} == {"edge", "cloud"}
            assert all(r.source == "edge" for r in records["auto"] if r.sample == 0)
        assert _by_auto(turns) == {"cloud"}
        assert all(r.predicted_ms for r in turns["auto"] if r.sample == 1)
        assert up["raw"] > up["cascade"] > 0
        # Sent on time, whether or not answers have come.
        dues = [r.at for r in paced["raw"]]
        assert [b - a for a, b in pairwise(dues)] == pytest.approx([0.03] * 19)

    asyncio.run(both())
