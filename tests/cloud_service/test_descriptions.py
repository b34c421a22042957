"""The service's models as the protocol describes them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cloud_service.descriptions import create_catalogue
from cloud_service.metrics import Metrics
from cloud_service.models import Models, load_models
from cloud_service.settings import Settings
from inference_core.catalogue import Catalogue
from inference_core.errors import ModelNotFound, NotReady, VersionMismatch


def settings_for(bundle: Path) -> Settings:
    options: dict[str, Any] = {"max_batch_size": 32, "max_queue": 8, "batch_window_ms": 1.5, "threads": 1}
    return Settings(bundles=(bundle,), **options)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def catalogue(make_bundle: Callable[..., Path], models: Models) -> Catalogue:
    settings = settings_for(make_bundle(cuts=("means",)))
    with ThreadPoolExecutor(1) as runs:
        models.load(load_models(settings, Metrics(CollectorRegistry()), runs, time.monotonic))
    return create_catalogue(models, settings, "1.2.3")


def test_server(catalogue: Catalogue) -> None:
    assert (catalogue.server()["name"], catalogue.server()["version"]) == ("tandem-cloud", "1.2.3")
    assert catalogue.ready
    assert [entry["name"] for entry in catalogue.index()] == [
        *("colors", "colors.image", "colors.packed.means", "colors.tail.means"),
    ]


def test_models_on_tensors_take_batches(catalogue: Catalogue) -> None:
    for name, dims in (("colors", [3, 8, 8]), ("colors.tail.means", [3])):
        config = catalogue.config(name, "1")
        assert config["max_batch_size"] == 8  # no more fit the queue
        assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 1500
        assert config["input"][0]["dims"] == dims
        assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}]


def test_models_on_encoded_samples_have_whole_shapes(catalogue: Catalogue) -> None:
    for name, dims in (("colors.image", [-1]), ("colors.packed.means", [1])):
        config = catalogue.config(name)
        assert config["max_batch_size"] == 0
        assert (config["input"][0]["data_type"], config["input"][0]["dims"]) == ("TYPE_STRING", dims)
        assert config["output"][0]["dims"] == [-1, 3]
        assert "dynamic_batching" not in config


def test_what_is_not_there(catalogue: Catalogue) -> None:
    with pytest.raises(ModelNotFound):
        catalogue.metadata("shapes")
    with pytest.raises(VersionMismatch):
        catalogue.metadata("colors", "2")
    assert not catalogue.model_ready("shapes")
    assert not catalogue.model_ready("colors", "2")
    assert catalogue.model_ready("colors", "1")


def test_stopping_and_loading(catalogue: Catalogue, models: Models, tmp_path: Path) -> None:
    models.ready = False
    assert not catalogue.ready
    assert not catalogue.model_ready("colors")
    loading = create_catalogue(Models(), settings_for(tmp_path), "1.2.3")
    assert not loading.ready
    assert loading.index() == []
    with pytest.raises(NotReady):
        loading.metadata("colors")
