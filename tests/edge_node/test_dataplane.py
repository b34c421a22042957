"""The protocol without a transport."""

from pathlib import Path

import numpy as np
import pytest

from edge_node.dataplane import Metadata
from inference_core.engine import TensorSpec
from inference_core.errors import CloudUnreachable, InvalidInput, ModelNotFound, Overloaded
from tests.bundles import SURE, UNSURE, pixels, write_bundle
from tests.edge_node.node import CloudSimulator, Node, node

pytestmark = pytest.mark.anyio


async def test_metadata_and_readiness(edge: Node) -> None:
    assert edge.dataplane.ready
    assert edge.dataplane.model_ready("colors")
    assert edge.dataplane.model_ready("colors", "1")
    assert not edge.dataplane.model_ready("colors", "2")
    assert not edge.dataplane.model_ready("shapes")
    assert edge.dataplane.metadata("colors") == Metadata(
        "colors",
        "1",
        (TensorSpec("input", "FP32", (-1, 3, 8, 8)),),
        (TensorSpec("logits", "FP32", (-1, 3)),),
    )
    with pytest.raises(ModelNotFound):
        edge.dataplane.metadata("colors", "2")


async def test_nothing_is_ready_while_loading_or_stopping(edge: Node) -> None:
    with node(*edge.settings.bundles, loaded=False) as loading:
        assert not loading.dataplane.ready
        assert not loading.dataplane.model_ready("colors")
    edge.slots.ready = False
    assert not edge.dataplane.ready
    assert not edge.dataplane.model_ready("colors")


async def test_rows_keep_their_order_whoever_answers_them(edge: Node) -> None:
    colors = [SURE, UNSURE] * 8
    inferred = await edge.dataplane.infer("colors", "", "id-7", {"input": pixels(*colors)}, {})
    assert inferred.outputs["logits"].argmax(axis=1).tolist() == [0, 2] * 8
    assert inferred.outputs["logits"].dtype == np.float32
    assert inferred.parameters["tandem_source"] == ",".join(["edge", "cloud"] * 8)
    assert (inferred.model, inferred.version, inferred.id) == ("colors", "1", "id-7")


@pytest.mark.parametrize("mode", ["cascade", "split"])
async def test_features_of_an_early_exit_are_nobodys_business(tmp_path: Path, mode: str) -> None:
    folder = write_bundle(tmp_path / "exit", exit_at="means")
    with node(folder, cloud=CloudSimulator(folder), mode=mode) as exiting:
        dataplane, given = exiting.dataplane, {"input": pixels(SURE, UNSURE)}
        assert dataplane.metadata("colors").outputs == (TensorSpec("logits", "FP32", (-1, 3)),)
        inferred = await dataplane.infer("colors", "", "", given, {})
        assert inferred.outputs.keys() == {"logits"}
        assert inferred.outputs["logits"].argmax(axis=1).tolist() == [0, 2]
        assert inferred.parameters["tandem_source"] == "edge,cloud"
        with pytest.raises(InvalidInput, match="output 'features': the model has 'logits' only"):
            await dataplane.infer("colors", "", "", given, {}, ("features",))


async def test_one_row_has_plain_parameters(edge: Node) -> None:
    inferred = await edge.dataplane.infer("colors", "1", "", {"input": pixels(SURE)}, {})
    assert inferred.parameters["tandem_degraded"] is False
    assert isinstance(inferred.parameters["tandem_confidence"], float)
    assert inferred.id


async def test_each_row_falls_back_for_itself(edge: Node, cloud: CloudSimulator) -> None:
    cloud.failure = CloudUnreachable("gone")
    inferred = await edge.dataplane.infer("colors", "", "", {"input": pixels(SURE, UNSURE)}, {})
    assert inferred.parameters["tandem_source"] == "edge,edge_fallback"
    assert inferred.parameters["tandem_degraded"] == "false,true"


async def test_refused_batch_leaves_nothing_behind(cloud: CloudSimulator, edge: Node) -> None:
    with node(*edge.settings.bundles, cloud=cloud, max_inflight=3) as narrow:
        with pytest.raises(Overloaded, match="3 samples are being answered, the limit is 3"):
            await narrow.dataplane.infer("colors", "", "", {"input": pixels(*[UNSURE] * 5)}, {})
        assert narrow.value("tandem_inflight_requests") == 0
        inferred = await narrow.dataplane.infer("colors", "", "", {"input": pixels(*[UNSURE] * 3)}, {})
        assert len(inferred.outputs["logits"]) == 3
        assert narrow.series("tandem_requests_total") == {("colors", "low_confidence", "cloud"): 3}
        assert len(cloud.asked) == 3


async def test_batch_whose_rows_all_fail_raises_the_error_itself(edge: Node) -> None:
    with pytest.raises(InvalidInput, match="'auto' is not available yet"):
        await edge.dataplane.infer("colors", "", "", {"input": pixels(SURE, SURE)}, {"tandem_mode": "auto"})
