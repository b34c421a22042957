"""What a bundle gives the cloud to serve, and the bundles that it refuses."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from cloud_service.decoding import Images
from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served, load_models
from cloud_service.settings import Settings
from inference_core.bundle import load_bundle
from inference_core.errors import (
    BundleError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    TooLarge,
    VersionMismatch,
)
from inference_core.preprocess import Preprocess
from inference_core.tensors import Tensors
from tests.bundles import (
    SURE,
    UNSURE,
    edited,
    golden_bytes,
    model_bytes,
    picture,
    pixels,
    pool_and_classify,
    replace_file,
)

MakeBundle = Callable[..., Path]
Load = Callable[..., list[Served]]


@pytest.fixture
def load() -> Iterator[Load]:
    """`load(folder, ...)` -> what is served of these bundles."""
    with ThreadPoolExecutor(1) as executor:

        def load(*folders: Path, **changes: Any) -> list[Served]:
            settings = Settings(bundles=folders, threads=1, **changes)
            return load_models(settings, Metrics(CollectorRegistry()), executor, time.monotonic)

        yield load


def serving(load: Load, *folders: Path) -> Models:
    models = Models()
    models.load(load(*folders))
    return models


def test_a_bundle_gives_the_full_model_its_image_form_and_a_tail_for_each_cut(
    load: Load, make_bundle: MakeBundle
) -> None:
    folder = make_bundle()
    served = load(folder)
    assert [item.name for item in served] == [
        "colors",
        "colors.image",
        "colors.tail.pixels",
        "colors.tail.means",
        "colors.packed.pixels",
        "colors.packed.means",
    ]
    assert {(item.version, item.digest) for item in served} == {("1", load_bundle(folder).digest)}
    assert served[0].batcher is served[1].batcher


def test_a_bundle_on_tensors_alone_has_no_image_form(load: Load, make_bundle: MakeBundle) -> None:
    served = load(make_bundle(preprocess=False, cuts=("means",)))
    assert [item.name for item in served] == ["colors", "colors.tail.means", "colors.packed.means"]


def test_two_bundles(load: Load, make_bundle: MakeBundle) -> None:
    models = serving(
        load, make_bundle("a", model="a", cuts=()), make_bundle("b", model="b", version="2", cuts=())
    )
    assert [item.name for item in models.all()] == ["a", "a.image", "b", "b.image"]
    assert models.get("a").digest != models.get("b").digest
    assert models.get("b.image", "2").version == "2"


def test_two_bundles_of_one_model_are_refused(load: Load, make_bundle: MakeBundle) -> None:
    models = Models()
    with pytest.raises(BundleError, match="two bundles give a model 'colors'"):
        models.load(load(make_bundle("a", cuts=()), make_bundle("b", version="2", cuts=())))
    assert not models.ready


def test_nothing_is_there_while_loading() -> None:
    models = Models()
    assert not models.ready
    assert models.all() == []
    with pytest.raises(Overloaded, match="still loading"):
        models.get("colors")


@pytest.mark.parametrize(
    ("name", "version", "digest", "error", "text"),
    [
        ("shapes", "", "", ModelNotFound, "'shapes' is not served here, only colors, colors.image"),
        ("colors.tail", "", "", ModelNotFound, "'colors.tail' is not served here"),
        ("colors", "2", "", VersionMismatch, "version 2 was asked for, 1 is here"),
        ("colors", "1", "ab" * 32, VersionMismatch, "bundle abababababab was asked for, "),
        ("colors.image", "", "ab" * 32, VersionMismatch, "bundle abababababab was asked for, "),
    ],
)
def test_what_is_not_served(
    load: Load,
    make_bundle: MakeBundle,
    name: str,
    version: str,
    digest: str,
    error: type[Exception],
    text: str,
) -> None:
    models = serving(load, make_bundle())
    with pytest.raises(error, match=text):
        models.get(name, version, digest)


def test_version_and_digest_may_be_left_open(load: Load, make_bundle: MakeBundle) -> None:
    models = serving(load, make_bundle())
    served = models.get("colors")
    assert models.get("colors", "1", served.digest) is served


@pytest.fixture
def images() -> Images:
    return Images(Preprocess(height=8, width=8), "input", max_pixels=100, max_images=2)


def encoded(*items: object) -> Tensors:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return {"image": array}


def test_images_become_one_batch(images: Images) -> None:
    decoded = images.decode(encoded(picture(SURE), picture(UNSURE)))
    assert decoded.keys() == {"input"}
    assert decoded["input"] == pytest.approx(pixels(SURE, UNSURE))


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ({}, InvalidInput, "takes one input, 'image'"),
        ({"image": np.zeros(1)}, InvalidInput, "takes one input, 'image'"),
        ({"image": encoded(b"x")["image"][None]}, InvalidInput, r"BYTES of shape \[-1\]"),
        ({**encoded(b"x"), "more": np.zeros(1)}, InvalidInput, "takes one input, 'image'"),
        (encoded(), InvalidInput, "0 images in one request, the limits are 1 and 2"),
        (encoded(b"x", b"x", b"x"), InvalidInput, "3 images in one request, the limits are 1 and 2"),
        (encoded(b"x"), InvalidInput, "not one of JPEG, PNG, WEBP"),
        (encoded(picture(SURE, size=(11, 10))), TooLarge, "110 pixels, the limit is 100"),
    ],
)
def test_bad_images(images: Images, inputs: Tensors, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        images.decode(inputs)


def _replace_full(folder: Path) -> None:
    replace_file(folder, "full.onnx", model_bytes(pool_and_classify(bias=(1.0, 0.0, 0.0))))


def _flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "tail-means.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "tail-means.onnx").write_bytes(bytes(data))


def _newer_format(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["format"] = 99


def _bad_name(folder: Path) -> None:
    with edited(folder) as manifest:
        manifest["model"] = "Colors!"


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _no_tail(folder: Path) -> None:
    (folder / "tail-pixels.onnx").unlink()


def _not_onnx(folder: Path) -> None:
    replace_file(folder, "full.onnx", b"hello")


def _golden_of_others(folder: Path) -> None:
    names = ("edge-int8.onnx", "full.onnx")
    files = {name: (folder / name).read_bytes() for name in names}
    replace_file(folder, "golden.npz", golden_bytes(files, cuts=()))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_replace_full, r"full.onnx: output 'logits' differs from its golden value"),
        (_flip_a_byte, r"tail-means.onnx: SHA-256 is [0-9a-f]{64}, the manifest says"),
        (_newer_format, r"manifest.json: format: 99 is newer than this program understands"),
        (_bad_name, r"model 'Colors!' does not match"),
        (_no_manifest, r"manifest.json: cannot be read: No such file"),
        (_no_tail, r"tail-pixels.onnx: cannot be read: No such file"),
        (_not_onnx, r"full.onnx: not an ONNX file"),
        (_golden_of_others, r"tail-pixels.onnx: golden outputs \[\]"),
    ],
)
def test_broken_bundle_is_refused_by_file_and_rule(
    load: Load, make_bundle: MakeBundle, spoil: Callable[[Path], None], text: str
) -> None:
    folder = make_bundle()
    spoil(folder)
    with pytest.raises(BundleError, match=text):
        load(folder)


def test_settings_reach_the_batcher_and_the_images(load: Load, make_bundle: MakeBundle) -> None:
    served = {item.name: item for item in load(make_bundle(cuts=()), max_batch_size=3, max_pixels=99)}
    images = served["colors.image"].decoder
    assert isinstance(images, Images)
    assert (images.max_images, images.max_pixels, images.input_name) == (3, 99, "input")


def test_answers_on_images_count_as_an_ensembles_do(load: Load, make_bundle: MakeBundle) -> None:
    models = serving(load, make_bundle())
    for name, runs in (("colors", 0), ("colors.image", 1), ("colors.tail.means", 0)):
        served = models.get(name)
        assert served.labels == ("red", "green", "blue")
        served.answered(3, 0.010, 0.001, 0.002, 0.004, 0.001)
        counted = served.statistics.document()
        assert counted["inference_count"] == 3
        assert counted["execution_count"] == runs, name
        assert counted["inference_stats"]["compute_infer"] == {"count": 1, "ns": 4_000_000}
