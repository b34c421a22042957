"""Reading labelled images from folders and archives."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from inference_core.errors import InvalidInput, TooLarge
from tests.toolchain import networks
from toolchain import images
from toolchain.images import check_label, label_of, open_images, read_images


def _folder(root: Path) -> Path:
    """Six images: three cats, two dogs, one without a label."""
    for number, name in enumerate(("cat/2.png", "cat/1.png", "cat/0.png", "dog/4.png", "dog/3.png", "5.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(networks.png(np.full((8, 8), number, np.uint8)))
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def _archive(root: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in root.rglob("*"):
            archive.write(path, Path("photos") / path.relative_to(root))
        archive.writestr("__MACOSX/photos/cat/._0.png", b"resource fork")
    return target


def _flip(archive: Path, name: str) -> None:
    """Turn over one byte in the middle of the entry `name`."""
    with zipfile.ZipFile(archive) as opened:
        entry = opened.getinfo(name)
    data = bytearray(archive.read_bytes())
    data[entry.header_offset + 30 + len(name) + entry.compress_size // 2] ^= 0xFF
    archive.write_bytes(data)


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


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_entry_is_named(tmp_path: Path, compression: int) -> None:
    folder = _folder(tmp_path / "set")
    (folder / "cat" / "1.png").write_bytes(bytes(range(256)))
    archive = _archive(folder, compression)
    _flip(archive, "photos/cat/1.png")
    with pytest.raises(InvalidInput, match=r"set\.zip: photos/cat/1\.png: cannot be read from the archive"):
        read_images(archive)
    with open_images(archive) as found:
        assert found.read("photos/cat/0.png").label == "cat"
        with pytest.raises(InvalidInput, match=r"^photos/cat/1\.png: cannot be read from the archive"):
            found.read("photos/cat/1.png")
        assert found.read("photos/cat/2.png").name == "photos/cat/2.png"


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    archive = _archive(_folder(tmp_path / "set"))
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(InvalidInput, match=r"set\.zip: not a folder, and not a zip archive or a damaged one"):
        read_images(archive)


def test_an_archive_behind_a_password_is_refused(tmp_path: Path) -> None:
    archive = _archive(_folder(tmp_path / "set"))
    data = bytearray(archive.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):  # in the list, and before each entry
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + flags] |= 1
    archive.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"photos/5\.png: cannot be read from the archive .*encrypted"):
        read_images(archive)


def test_an_image_that_vanishes_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set")
    with open_images(folder) as found:
        (folder / "cat" / "1.png").unlink()
        with pytest.raises(InvalidInput, match=r"^cat/1\.png: cannot be read \(No such file or directory\)$"):
            found.read("cat/1.png")


def test_the_label_of_an_image_is_the_folder_it_lies_in() -> None:
    assert label_of("5.png") is None
    assert label_of("cat/5.png") == "cat"
    assert label_of("photos/cat/5.png") == "cat"


def test_a_label_must_be_one_of_those_that_are_known() -> None:
    check_label("0.png", "cat", ("cat", "dog"))
    with pytest.raises(InvalidInput, match=r"^0\.png: label 'x' is not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9$"):
        check_label("0.png", "x", [str(number) for number in range(10)])
    with pytest.raises(InvalidInput, match=r"8, 9 and 2 more$"):
        check_label("0.png", "x", [str(number) for number in range(12)])
