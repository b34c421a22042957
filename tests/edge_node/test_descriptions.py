"""The node's models as the protocol describes them."""

from pathlib import Path

import pytest

from edge_node.descriptions import create_catalogue
from inference_core.errors import ModelNotFound
from tests.bundles import write_bundle
from tests.edge_node.node import Node, node


def test_ready_models(edge: Node) -> None:
    catalogue = create_catalogue(edge.slots, "1.2.3", 64)
    assert catalogue.server()["name"] == "tandem-edge"
    assert catalogue.ready
    assert catalogue.model_ready("colors")
    assert catalogue.model_ready("colors", "1")
    assert not catalogue.model_ready("colors", "2")
    assert not catalogue.model_ready("shapes")
    with pytest.raises(ModelNotFound):
        catalogue.metadata("colors", "2")


def test_nothing_is_ready_while_loading_or_stopping(edge: Node) -> None:
    with node(*edge.settings.bundles, loaded=False) as loading:
        assert not loading.dataplane.catalogue.ready
        assert not loading.dataplane.catalogue.model_ready("colors")
    edge.slots.ready = False
    assert not edge.dataplane.catalogue.ready
    assert not edge.dataplane.catalogue.model_ready("colors")


def test_model(edge: Node) -> None:
    catalogue = create_catalogue(edge.slots, "1.2.3", 7)
    metadata = catalogue.metadata("colors")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    config = catalogue.config("colors")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (7, [3, 8, 8])
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0


def test_features_of_an_early_exit_are_nobodys_business(tmp_path: Path) -> None:
    with node(write_bundle(tmp_path / "exit", exit_at="means")) as exiting:
        catalogue = exiting.dataplane.catalogue
        assert [output["name"] for output in catalogue.metadata("colors")["outputs"]] == ["logits"]
        assert [output["name"] for output in catalogue.config("colors")["output"]] == ["logits"]
