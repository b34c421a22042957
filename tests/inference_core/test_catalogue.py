"""The protocol's documents about a server and its models."""

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from inference_core.catalogue import EXTENSIONS, Catalogue, Description, only_ready
from inference_core.engine import TensorSpec
from inference_core.errors import InvalidInput, ModelNotFound, NotReady
from inference_core.statistics import Statistics
from protos import open_inference_pb2 as oip

COLORS = Description(
    *("colors", "3", (TensorSpec("input", "FP32", (-1, 3, 8, 8)),), (TensorSpec("logits", "FP32", (-1, 3)),)),
    *(Statistics(), 16, 500),
)
IMAGES = Description(
    *("colors.image", "3", (TensorSpec("image", "BYTES", (-1,)),), COLORS.outputs, Statistics(), 0),
)


class Server:
    """What a catalogue asks, made small."""

    def __init__(self, *models: Description) -> None:
        self.models = {model.name: model for model in models}
        self.is_ready = True
        self.catalogue = Catalogue(
            "tandem-test",
            "1.2.3",
            find=self.find,
            every=lambda: list(self.models.values()),
            ready=lambda: self.is_ready,
        )

    def find(self, name: str, version: str) -> Description:
        if not self.models:
            raise NotReady("loading")
        if name not in self.models or version not in ("", self.models[name].version):
            raise ModelNotFound(f"{name} {version}")
        return self.models[name]


@pytest.fixture
def server() -> Server:
    return Server(COLORS, IMAGES)


def test_server(server: Server) -> None:
    assert server.catalogue.server() == {
        "name": "tandem-test",
        "version": "1.2.3",
        "extensions": list(EXTENSIONS),
    }


def test_health(server: Server) -> None:
    catalogue = server.catalogue
    assert catalogue.ready
    assert catalogue.health("colors", "3") == ({"name": "colors", "ready": True, "live": True}, True)
    assert catalogue.model_ready("colors")
    assert not catalogue.model_ready("colors", "4")
    assert not catalogue.model_ready("shapes")
    with pytest.raises(ModelNotFound):
        catalogue.health("shapes")


def test_health_of_what_is_stopping(server: Server) -> None:
    server.is_ready = False
    catalogue = server.catalogue
    assert not catalogue.ready
    assert catalogue.health("colors") == ({"name": "colors", "ready": False, "live": False}, False)
    assert not catalogue.model_ready("colors")


def test_loading_model_is_not_ready_rather_than_unknown() -> None:
    catalogue = Server().catalogue
    assert catalogue.health("colors") == ({"name": "colors", "ready": False, "live": False}, False)
    assert not catalogue.model_ready("colors")
    assert catalogue.statistics() == {"model_stats": []}
    with pytest.raises(NotReady):
        catalogue.metadata("colors")


def test_metadata(server: Server) -> None:
    assert server.catalogue.metadata("colors", "3") == {
        "name": "colors",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_config_leaves_the_axis_of_samples_out(server: Server) -> None:
    assert server.catalogue.config("colors") == {
        "name": "colors",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 16,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}],
        "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 500},
    }


def test_config_of_a_model_without_that_axis_has_whole_shapes(server: Server) -> None:
    config = server.catalogue.config("colors.image")
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, 3]}]
    assert "dynamic_batching" not in config


def test_statistics(server: Server) -> None:
    (one,) = server.catalogue.statistics("colors", "3")["model_stats"]
    assert (one["name"], one["version"], one["inference_count"]) == ("colors", "3", 0)
    every = server.catalogue.statistics()["model_stats"]
    assert [stats["name"] for stats in every] == ["colors", "colors.image"]
    with pytest.raises(ModelNotFound):
        server.catalogue.statistics("shapes")


def test_index(server: Server) -> None:
    ready = [
        {"name": name, "version": "3", "state": "READY", "reason": ""} for name in ("colors", "colors.image")
    ]
    assert server.catalogue.index() == ready
    assert server.catalogue.index(only_ready=True) == ready
    server.is_ready = False
    assert {item["state"] for item in server.catalogue.index()} == {"UNAVAILABLE"}
    assert server.catalogue.index(only_ready=True) == []


def test_documents_fill_the_messages_of_the_same_name(server: Server) -> None:
    catalogue = server.catalogue
    COLORS.statistics.success(2, 0.1, 0.0, 0.0, 0.1, 0.0)
    COLORS.statistics.executed(2, 0.1)
    metadata = ParseDict(catalogue.metadata("colors"), oip.ModelMetadataResponse())
    assert list(metadata.inputs[0].shape) == [-1, 3, 8, 8]
    for name, kind in (("colors", oip.TYPE_FP32), ("colors.image", oip.TYPE_STRING)):
        config = ParseDict({"config": catalogue.config(name)}, oip.ModelConfigResponse()).config
        assert config.input[0].data_type == kind
    stats = ParseDict(catalogue.statistics(), oip.ModelStatisticsResponse()).model_stats[0]
    assert stats.inference_stats.success.ns == 100_000_000
    assert stats.batch_stats[0].batch_size == 2
    index = ParseDict({"models": catalogue.index()}, oip.RepositoryIndexResponse())
    assert [model.state for model in index.models] == ["READY", "READY"]
    assert ParseDict(catalogue.server(), oip.ServerMetadataResponse()).name == "tandem-test"


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "FP32", "FP64", "BYTES"])
def test_every_datatype_has_a_name_in_configurations(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 1))
    catalogue = Server(Description("m", "1", (spec,), (spec,), Statistics(), 1)).catalogue
    assert ParseDict({"config": catalogue.config("m")}, oip.ModelConfigResponse()).config.input[0].data_type


@pytest.mark.parametrize(
    ("body", "wanted"), [(b"", False), (b" ", False), (b"{}", False), (b'{"ready": true}', True)]
)
def test_index_asked_for(body: bytes, wanted: bool) -> None:
    assert only_ready(body) is wanted


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1}', b"3", b"\xff"])
def test_index_asked_for_badly(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="body: "):
        only_ready(body)


def test_description_is_frozen() -> None:
    changed: Any = COLORS
    with pytest.raises(AttributeError):
        changed.name = "x"
