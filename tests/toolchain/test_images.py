"""Reading labelled images from folders and archives."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from inference_core.errors import InvalidInput, TooLarge
from tests.toolchain import networks
from toolchain import images
from toolchain.images import LabelledImage, as_examples, read_images


def _folder(root: Path) -> Path:
    """Six images: three cats, two dogs, one without a label."""
    for number, name in enumerate(("cat/2.png", "cat/1.png", "cat/0.png", "dog/4.png", "dog/3.png", "5.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(networks.png(np.full((8, 8), number, np.uint8)))
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def _archive(root: Path) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, Path("photos") / path.relative_to(root))
        archive.writestr("__MACOSX/photos/cat/._0.png", b"resource fork")
    return target


def test_a_folder_gives_its_images_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = read_images(_folder(tmp_path / "set"))
    assert [(image.name, image.label) for image in found] == [
        ("5.png", None),
        ("cat/0.png", "cat"),
        ("cat/1.png", "cat"),
        ("cat/2.png", "cat"),
        ("dog/3.png", "dog"),
        ("dog/4.png", "dog"),
    ]
    assert found[1].data == (tmp_path / "set/cat/0.png").read_bytes()


def test_an_archive_of_a_folder_gives_the_same_images(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    (folder / "5.png").unlink()
    found = read_images(_archive(folder))
    assert [image.name for image in found] == [f"photos/{image.name}" for image in read_images(folder)]
    assert [(i.label, i.data) for i in found] == [(i.label, i.data) for i in read_images(folder)]


def test_a_limit_is_spread_over_all_classes(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    assert [image.name for image in read_images(folder, limit=3)] == ["5.png", "cat/1.png", "dog/3.png"]
    assert len(read_images(folder, limit=100)) == 6


def test_a_seed_draws_the_same_images_again(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    first = read_images(folder, limit=4, seed=1)
    assert first == read_images(folder, limit=4, seed=1)
    assert first != read_images(folder, limit=4, seed=2)
    assert len({image.name for image in first}) == 4


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(InvalidInput, match=f"limit must be at least 1, got {limit}"):
        read_images(tmp_path, limit=limit)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no image"):
        read_images(tmp_path)
    with pytest.raises(InvalidInput, match="no such folder or zip archive"):
        read_images(tmp_path / "missing")
    (tmp_path / "text.zip").write_text("not an archive")
    with pytest.raises(InvalidInput, match="not a zip archive"):
        read_images(tmp_path / "text.zip")


def test_an_unknown_label_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    with pytest.raises(InvalidInput, match=r"5\.png: lies in no folder"):
        read_images(folder, labels=("cat", "dog"))
    (folder / "5.png").unlink()
    assert len(read_images(folder, labels=("cat", "dog"))) == 5
    with pytest.raises(InvalidInput, match=r"dog/3\.png: label 'dog' is not one of cat, bird"):
        read_images(folder, labels=("cat", "bird"))


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "set" / "cat" / "0.png"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(images.MAX_IMAGE_BYTES + 1)
    with pytest.raises(TooLarge, match=r"0\.png: 33554433 bytes, the limit is 33554432"):
        read_images(tmp_path / "set")
    with pytest.raises(TooLarge, match="the limit is 33554432"):
        read_images(_archive(tmp_path / "set"))


def test_examples_are_inputs_and_positions_of_labels() -> None:
    some = networks.images(5)
    examples = as_examples(some, networks.PREPROCESS, networks.LABELS)
    assert len(examples) == 5
    assert np.array_equal(examples.inputs, networks.inputs(5))
    assert [networks.LABELS[at] for at in examples.classes] == [image.label for image in some]
    assert examples.image_bytes == sum(len(image.data) for image in some) / 5


def test_examples_name_the_image_that_is_damaged_or_unlabelled() -> None:
    good = networks.images(1)[0]
    with pytest.raises(InvalidInput, match=r"bad\.png: image: not one of"):
        as_examples([good, LabelledImage("bad.png", "flat", b"x")], networks.PREPROCESS, networks.LABELS)
    with pytest.raises(InvalidInput, match=r"free\.png: lies in no folder"):
        as_examples([LabelledImage("free.png", None, good.data)], networks.PREPROCESS, networks.LABELS)
    with pytest.raises(InvalidInput, match="there are no images"):
        as_examples([], networks.PREPROCESS, networks.LABELS)
