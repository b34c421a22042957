"""What is run in this process has been run in another one, once."""

from pathlib import Path

import pytest

from inference_core.bundle import Bundle, File, load_bundle
from inference_core.errors import BundleError
from inference_core.qualification import Qualification
from inference_core.qualify import Limits
from tests import wedges
from tests.bundles import replace_file, write_bundle


def files(folder: Path) -> tuple[Bundle, list[File]]:
    """A bundle and what an edge node runs of it."""
    bundle = load_bundle(folder)
    return bundle, [bundle.manifest.edge_variant, *bundle.manifest.heads.values()]


def test_what_passes_is_remembered(tmp_path: Path) -> None:
    qualification = Qualification(Limits(seconds=30))
    bundle, wanted = files(write_bundle(tmp_path / "colors"))
    qualification.check([(bundle, wanted)])
    for file in wanted:  # not needed again: the digests are known
        (bundle.folder / file.file).unlink()
    qualification.check([(bundle, wanted)])


def test_several_bundles_and_the_one_that_wants_all_memory(tmp_path: Path) -> None:
    good = files(write_bundle(tmp_path / "good"))
    folder = write_bundle(tmp_path / "bad")
    replace_file(folder, "edge-int8.onnx", wedges.greedy(over=-1.0))
    with pytest.raises(BundleError) as refused:
        Qualification(Limits(memory_bytes=4 << 30)).check([good, files(folder)])
    assert str(refused.value) == (
        f"{folder}/edge-int8.onnx: ConstantOfShape asks for 4194304 MiB at once, "
        "the limit is 4096 MiB of memory; use a smaller model"
    )


def test_what_does_not_fit_its_golden_inputs_names_the_bundle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colors")
    bundle, (edge, *_) = files(folder)
    tail = bundle.manifest.cuts[0].tail
    replace_file(folder, edge.file, (folder / tail.file).read_bytes())
    with pytest.raises(BundleError) as refused:
        Qualification(Limits()).check([files(folder)])
    assert str(refused.value).startswith(f"{folder}: ")


def test_without_limits_nothing_is_run(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colors")
    replace_file(folder, "edge-int8.onnx", wedges.looping(over=-1.0))
    Qualification(None).check([files(folder)])
