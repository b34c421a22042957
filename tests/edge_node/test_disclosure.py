"""What of a sample goes up, by the privacy of the node: the one place for what was kept."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_node.disclosure import Disclosed, Disclosure
from edge_node.keeping import Reason
from edge_node.model_slot import PROVIDERS
from edge_node.policy import Privacy
from edge_node.sample_store import Form, Sample
from inference_core.bundle import load_bundle
from inference_core.errors import InvalidInput
from tests.bundles import UNSURE, picture, pixels, write_bundle
from tests.edge_node.node import Node, node

pytestmark = pytest.mark.anyio


def sample(edge: Node, form: Form, **changes: Any) -> Sample:
    model = edge.slots.get("colors")
    payload = picture(UNSURE) if form is Form.IMAGE else pixels(UNSURE).tobytes()
    given: dict[str, Any] = {"model": "colors", "digest": model.digest, "payload": payload} | changes
    return Sample(
        "0" * 32, 0.0, Reason.FALLBACK, False, given["model"], "1", given["digest"], form, given["payload"],
        None, 0.8,
    )  # fmt: skip


@contextlib.contextmanager
def disclosing(folder: Path, privacy: Privacy, **changes: Any) -> Iterator[tuple[Node, Disclosure]]:
    with node(folder, privacy=privacy, **changes) as edge:
        yield edge, Disclosure(edge.slots, edge.runner, edge.executor, privacy=privacy, max_pixels=1 << 20)


async def test_the_input_goes_as_it_came(colors: Path) -> None:
    with disclosing(colors, Privacy.ANY) as (edge, disclosure):
        assert await disclosure.of(sample(edge, Form.IMAGE)) == Disclosed(image=picture(UNSURE))
        found = await disclosure.of(sample(edge, Form.TENSOR))
        assert found is not None
        assert found.tensors is not None
        assert np.array_equal(found.tensors["input"], pixels(UNSURE))
        assert (found.cut, found.image, found.bytes) == (None, None, pixels(UNSURE).nbytes)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("early_exit", [None, "means"])
async def test_features_go_in_its_place(tmp_path: Path, form: Form, early_exit: str | None) -> None:
    """Also where the edge model exits early, and there is no head at its cut."""
    folder = write_bundle(tmp_path / "colors", exit_at=early_exit)
    bundle = load_bundle(folder)
    cut = bundle.manifest.cut(early_exit or "pixels")
    assert cut is not None
    expected = bundle.engine(cut.head, threads=1, providers=PROVIDERS).run({"input": pixels(UNSURE)})
    with disclosing(folder, Privacy.FEATURES) as (edge, disclosure):
        found = await disclosure.of(sample(edge, form))
        assert found is not None
        assert found.tensors is not None
        assert (found.cut, found.image) == (cut.name, None)
        assert found.tensors.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(found.tensors[name], array)


async def test_the_cut_of_the_settings_is_taken(colors: Path) -> None:
    models = {"colors": {"cut": "means"}}
    with disclosing(colors, Privacy.FEATURES, models=models) as (edge, disclosure):
        found = await disclosure.of(sample(edge, Form.IMAGE))
        assert found is not None
        assert found.cut == "means"


@pytest.mark.parametrize("form", Form)
async def test_nothing_goes_where_nothing_may(colors: Path, form: Form) -> None:
    with disclosing(colors, Privacy.NOTHING) as (edge, disclosure):
        assert await disclosure.of(sample(edge, form)) is None


async def test_without_a_cut_there_are_no_features(tmp_path: Path) -> None:
    with disclosing(write_bundle(tmp_path / "colors", cuts=()), Privacy.FEATURES) as (edge, disclosure):
        assert await disclosure.of(sample(edge, Form.IMAGE)) is None


async def test_what_was_kept_before_a_model_was_left_out_stays_here(colors: Path) -> None:
    with disclosing(colors, Privacy.ANY, models={"colors": {"upload": "never"}}) as (edge, disclosure):
        assert await disclosure.of(sample(edge, Form.IMAGE)) is None


@pytest.mark.parametrize("changes", [{"model": "shapes"}, {"digest": "e" * 64}])
async def test_a_sample_of_another_bundle_waits(colors: Path, changes: dict[str, str]) -> None:
    with disclosing(colors, Privacy.ANY) as (edge, disclosure):
        assert await disclosure.of(sample(edge, Form.IMAGE, **changes)) is None


async def test_what_cannot_be_made_into_features_is_the_sample_s_fault(colors: Path) -> None:
    with disclosing(colors, Privacy.FEATURES) as (edge, disclosure):
        with pytest.raises(InvalidInput):
            await disclosure.of(sample(edge, Form.IMAGE, payload=b"no image"))
        with pytest.raises(InvalidInput):
            await disclosure.of(sample(edge, Form.TENSOR, payload=b"short"))
