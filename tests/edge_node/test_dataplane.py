"""The protocol without a transport."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_node.dataplane import Dataplane, Inferred
from edge_node.keeper import Keeper
from edge_node.policy import Privacy
from inference_core.errors import CloudUnreachable, InvalidInput, Overloaded
from inference_core.tensors import Parameter, Tensors
from tests.bundles import SURE, UNSURE, pixels, write_bundle
from tests.edge_node.node import CloudSimulator, Node, node
from tests.edge_node.outbox import box

pytestmark = pytest.mark.anyio


async def infer(
    dataplane: Dataplane,
    inputs: Tensors,
    parameters: Mapping[str, Parameter] | None = None,
    outputs: Mapping[str, int] | None = None,
    *,
    version: str = "",
    request_id: str = "",
) -> Inferred:
    """What is answered to a request that has just arrived."""
    return await dataplane.infer(
        "colors", version, request_id, inputs, parameters or {}, outputs or {}, time.monotonic()
    )


async def test_rows_keep_their_order_whoever_answers_them(edge: Node) -> None:
    colors = [SURE, UNSURE] * 8
    inferred = await infer(edge.dataplane, {"input": pixels(*colors)}, request_id="id-7")
    assert inferred.outputs["logits"].argmax(axis=1).tolist() == [0, 2] * 8
    assert inferred.outputs["logits"].dtype == np.float32
    assert inferred.parameters["tandem_source"] == ",".join(["edge", "cloud"] * 8)
    assert (inferred.model, inferred.version, inferred.id) == ("colors", "1", "id-7")


@pytest.mark.parametrize("mode", ["cascade", "split"])
async def test_features_of_an_early_exit_are_nobodys_business(tmp_path: Path, mode: str) -> None:
    folder = write_bundle(tmp_path / "exit", exit_at="means")
    with node(folder, cloud=CloudSimulator(folder), mode=mode) as exiting:
        dataplane, given = exiting.dataplane, {"input": pixels(SURE, UNSURE)}
        inferred = await infer(dataplane, given)
        assert inferred.outputs.keys() == {"logits"}
        assert inferred.outputs["logits"].argmax(axis=1).tolist() == [0, 2]
        assert inferred.parameters["tandem_source"] == "edge,cloud"
        with pytest.raises(InvalidInput, match="output 'features': the model has 'logits' only"):
            await infer(dataplane, given, outputs={"features": 0})


async def test_one_row_has_plain_parameters(edge: Node) -> None:
    inferred = await infer(edge.dataplane, {"input": pixels(SURE)}, version="1")
    assert inferred.parameters["tandem_degraded"] is False
    assert isinstance(inferred.parameters["tandem_confidence"], float)
    assert inferred.id


async def test_each_row_falls_back_for_itself(edge: Node, cloud: CloudSimulator) -> None:
    cloud.failure = CloudUnreachable("gone")
    inferred = await infer(edge.dataplane, {"input": pixels(SURE, UNSURE)})
    assert inferred.parameters["tandem_source"] == "edge,edge_fallback"
    assert inferred.parameters["tandem_degraded"] == "false,true"


async def test_refused_batch_leaves_nothing_behind(cloud: CloudSimulator, edge: Node) -> None:
    with node(*edge.settings.bundles, cloud=cloud, max_inflight=3) as narrow:
        with pytest.raises(
            Overloaded, match="0 samples are being answered and 5 more asked for, the limit is 3"
        ):
            await infer(narrow.dataplane, {"input": pixels(*[UNSURE] * 5)})
        assert narrow.value("tandem_inflight_requests") == 0
        inferred = await infer(narrow.dataplane, {"input": pixels(*[UNSURE] * 3)})
        assert len(inferred.outputs["logits"]) == 3
        assert narrow.series("tandem_requests_total") == {("colors", "low_confidence", "cloud"): 3}
        assert len(cloud.asked) == 3


async def test_batch_whose_rows_all_fail_raises_the_error_itself(edge: Node) -> None:
    parameters: dict[str, Parameter] = {"tandem_mode": "auto", "tandem_cut": "means"}
    with pytest.raises(InvalidInput, match="only mode 'split' takes a cut"):
        await infer(edge.dataplane, {"input": pixels(SURE, SURE)}, parameters)


async def test_outputs_as_their_best_classes(edge: Node) -> None:
    inferred = await infer(edge.dataplane, {"input": pixels(SURE, UNSURE)}, outputs={"logits": 1})
    assert [text.split(b":")[1:] for text in inferred.outputs["logits"].ravel()] == [
        [b"0", b"red"],
        [b"2", b"blue"],
    ]


async def test_request_is_counted_once_whatever_becomes_of_it(edge: Node, cloud: CloudSimulator) -> None:
    await infer(edge.dataplane, {"input": pixels(SURE, UNSURE)})
    cloud.failure = CloudUnreachable("gone")
    await infer(edge.dataplane, {"input": pixels(UNSURE)})
    with pytest.raises(InvalidInput):
        await infer(edge.dataplane, {"input": pixels()})
    with pytest.raises(InvalidInput):
        await infer(edge.dataplane, {"input": pixels(SURE)}, {"tandem_mode": "split", "tandem_cut": "x"})
    (counted,) = edge.dataplane.catalogue.statistics("colors")["model_stats"]
    assert counted["inference_count"] == 3
    assert counted["inference_stats"]["success"]["count"] == 2
    assert counted["inference_stats"]["fail"]["count"] == 2


async def test_who_asks_for_it_is_told_what_is_kept_of_each_sample(colors: Path, tmp_path: Path) -> None:
    with box(tmp_path / "outbox.db") as one:
        keeper = Keeper(one.outbox, privacy=Privacy.ANY, audit_rate=0)
        with node(colors, keeper=keeper) as edge:
            for keep in (True, "true"):
                told = (
                    await infer(edge.dataplane, {"input": pixels(SURE)}, {"tandem_keep": keep})
                ).parameters
                assert (told["tandem_kept"],) == one.rows()[-1]
            both = {"input": pixels(SURE, UNSURE)}
            keys = str((await infer(edge.dataplane, both, {"tandem_keep": True})).parameters["tandem_kept"])
            assert sorted(keys.split(",")) == sorted(key for (key,) in one.rows()[-2:])
            plain = await infer(edge.dataplane, {"input": pixels(SURE)}, {})
            assert "tandem_kept" not in plain.parameters
            with pytest.raises(InvalidInput, match="tandem_threshold: must not be a boolean"):
                await infer(edge.dataplane, {"input": pixels(SURE)}, {"tandem_threshold": True})
