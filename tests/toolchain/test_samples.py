"""Turning folders, archives and tensors into what a model takes."""

import io
import logging
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from inference_core.errors import InvalidInput
from inference_core.manifest import TensorInfo
from inference_core.preprocess import Color, Preprocess
from toolchain import images
from toolchain.images import LabelledImage
from toolchain.parts import Parts, partition
from toolchain.samples import Samples, Wanted, read_samples, samples_of

RULES = Preprocess(color=Color.GRAY, height=8, width=6, mean=(0.5,), std=(0.25,))
INPUT = TensorInfo(name="input", datatype="FP32", shape=(1, 8, 6))
WANTED = Wanted(INPUT, 2, RULES)
EXACT = Wanted(INPUT, 2, RULES, resize=False)
LABELS = ("cat", "dog")


def png(brightness: int, width: int = 6, height: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height), brightness).save(out, "PNG")
    return out.getvalue()


def write(root: Path, names: Sequence[str]) -> Path:
    """Images below `root`, each as bright as its place in `names` says."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def pack(root: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root))
    return target


def brightness(samples: Samples) -> list[int]:
    """What was drawn into each of the samples."""
    return [round(value) for value in (samples.inputs[:, 0, 0, 0] * 0.25 + 0.5) * 255]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cats and two dogs."""
    return write(tmp_path / "set", ["cat/0.png", "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"])


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Thirty images without labels."""
    return write(tmp_path / "flat", [f"{number:02d}.png" for number in range(30)])


def refusal(
    source: Path, wanted: Wanted = WANTED, labels: tuple[str, ...] | None = None, max_bad: int = 0
) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_samples(source, wanted, labels, max_bad=max_bad)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- images with labels


def test_folders_are_the_classes_in_the_order_of_their_names(folder: Path) -> None:
    samples, labels = read_samples(folder, WANTED, None)
    assert labels == ("cat", "dog")
    assert samples.classes is not None
    assert samples.classes.tolist() == [0, 0, 0, 1, 1]
    assert samples.classes.dtype == np.int64
    assert samples.inputs.shape == (5, 1, 8, 6)
    assert samples.inputs.dtype == np.float32
    assert np.array_equal(samples.inputs[3], RULES.tensor(png(3))[0])
    assert samples.encoded_bytes == sum(len(png(number)) for number in range(5)) / 5
    assert samples.skipped == ()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_gives_what_its_folder_gives(folder: Path, compression: int) -> None:
    (samples, labels), (others, names) = (
        read_samples(source, WANTED, None) for source in (folder, pack(folder, compression))
    )
    assert labels == names
    assert np.array_equal(samples.inputs, others.inputs)
    assert samples.classes is not None
    assert others.classes is not None
    assert np.array_equal(samples.classes, others.classes)


def test_an_archive_that_lists_an_image_twice_gives_it_once(folder: Path) -> None:
    archive = pack(folder)
    with zipfile.ZipFile(archive, "a") as appended, pytest.warns(UserWarning, match="Duplicate name"):
        appended.writestr("cat/0.png", png(9))
    assert brightness(read_samples(archive, WANTED, None)[0]) == [9, 1, 2, 3, 4]


def test_given_labels_are_the_order_of_the_outputs(folder: Path) -> None:
    samples, labels = read_samples(folder, Wanted(INPUT, 3, RULES), ("dog", "bird", "cat"))
    assert labels == ("dog", "bird", "cat")
    assert samples.classes is not None
    assert samples.classes.tolist() == [2, 2, 2, 0, 0]


def test_classes_that_the_limit_leaves_out_are_still_counted(folder: Path) -> None:
    samples, labels = read_samples(folder, WANTED, None, limit=1)
    assert (len(samples), labels) == (1, LABELS)


def test_folders_of_numbers_out_of_order_are_pointed_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "set", [f"{number}/a.png" for number in range(11)])
    with caplog.at_level(logging.WARNING):
        _, labels = read_samples(source, Wanted(INPUT, 11, RULES), None)
    assert labels[:4] == ("0", "1", "10", "2")
    assert "the outputs are taken to be 0, 1, 10, 2 ..., the folders sorted as text" in caplog.text
    caplog.clear()
    shutil.rmtree(source / "10")
    with caplog.at_level(logging.WARNING):
        read_samples(source, Wanted(INPUT, 10, RULES), None)
    assert caplog.text == ""


def test_another_number_of_folders_than_outputs_is_refused(folder: Path) -> None:
    assert refusal(folder, Wanted(INPUT, 3, RULES)) == (
        f"{folder}: 2 folders of images, the model has 3 outputs; "
        "name the outputs in their order with --labels"
    )


def test_given_labels_must_fit_the_model(folder: Path) -> None:
    three = ("cat", "dog", "bird")
    assert refusal(folder, WANTED, three) == "--labels names 3 classes, the model has 2 outputs"
    assert refusal(folder, WANTED, ("cat", "cat")) == "--labels names 'cat' more than once"


def test_a_folder_that_is_no_output_is_refused(folder: Path) -> None:
    text = refusal(folder, WANTED, ("cat", "bird"))
    assert re.search(r"set: dog/\d\.png: label 'dog' is not one of cat, bird$", text)


def test_of_many_labels_a_refusal_names_ten(folder: Path) -> None:
    text = refusal(folder, Wanted(INPUT, 1000, RULES), tuple(f"c{number}" for number in range(1000)))
    assert text.endswith("is not one of c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 990 more")


@pytest.mark.parametrize("stray", ["9.png", "cat/tabby/9.png"])
def test_images_beside_folders_are_refused(folder: Path, stray: str) -> None:
    write(folder, [stray])
    named = stray if "/" not in stray else "cat/0.png"
    expected = f"{named} lies beside folders of images; give every image a folder, or none"
    assert refusal(folder).endswith(expected)
    assert refusal(pack(folder)).endswith(expected)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_one_class_is_refused(tmp_path: Path, labels: tuple[str, ...] | None) -> None:
    source = write(tmp_path / "set", ["cat/0.png", "cat/1.png"])
    expected = "all images lie in the folder 'cat': one class; a flat folder has its images at its top"
    assert refusal(source, labels=labels) == f"{source}: {expected}"
    assert refusal(pack(source), labels=labels).endswith(expected)


# ---- images without labels


def test_a_flat_folder_has_no_classes(flat: Path) -> None:
    for source in (flat, pack(flat)):
        samples, labels = read_samples(source, WANTED, None)
        assert labels == ("0", "1")
        assert samples.classes is None
        assert brightness(samples) == list(range(30))
        assert read_samples(source, WANTED, LABELS)[1] == LABELS


def test_a_limit_is_a_draw_that_the_seed_repeats(flat: Path) -> None:
    def drawn(seed: int) -> list[int]:
        return brightness(read_samples(flat, WANTED, None, limit=8, seed=seed)[0])

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 8
    assert brightness(read_samples(flat, WANTED, None, limit=99)[0]) == list(range(30))


def test_what_the_limit_leaves_out_is_not_read(flat: Path) -> None:
    for number in range(30):
        (flat / f"{number:02d}.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"2 of 2 images cannot be used"):
        read_samples(flat, WANTED, None, limit=2)


def test_limits_and_seeds_that_make_no_sense_are_refused(flat: Path) -> None:
    with pytest.raises(InvalidInput, match="--limit must be at least 1, got 0"):
        read_samples(flat, WANTED, None, limit=0)
    with pytest.raises(InvalidInput, match="--seed must be at least 0, got -1"):
        read_samples(flat, WANTED, None, limit=1, seed=-1)


# ---- what cannot be used


def test_images_that_cannot_be_used_are_named(folder: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"):
        (folder / name).write_bytes(b"no image")
    reason = "image: not one of JPEG, PNG, WEBP"
    assert refusal(folder, max_bad=3) == (
        f"{folder}: 4 of 5 images cannot be used, --max-bad allows 3: "
        f"cat/1.png: {reason}; cat/2.png: {reason}; dog/3.png: {reason}; ..."
    )


def test_as_many_as_allowed_are_skipped_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "cat/1.png").write_bytes(b"no image")
    (folder / "dog/3.png").write_bytes((folder / "dog/3.png").read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        samples, _ = read_samples(folder, WANTED, None, max_bad=2)
    assert brightness(samples) == [0, 2, 4]
    assert samples.classes is not None
    assert samples.classes.tolist() == [0, 0, 1]
    assert [line.split(":")[0] for line in samples.skipped] == ["cat/1.png", "dog/3.png"]
    assert [record.message for record in caplog.records] == [f"skipped {line}" for line in samples.skipped]
    assert samples.encoded_bytes == sum(len(png(number)) for number in (0, 2, 4)) / 3


def test_nothing_left_is_refused_however_many_are_allowed(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert "5 of 5 images cannot be used, --max-bad allows 9: cat/0.png" in refusal(folder, max_bad=9)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_entry_of_an_archive_is_one_bad_image(folder: Path, compression: int) -> None:
    (folder / "cat/1.png").write_bytes(png(1) + bytes(range(256)))
    archive = pack(folder, compression)
    with zipfile.ZipFile(archive) as opened:
        entry = opened.getinfo("cat/1.png")
    data = bytearray(archive.read_bytes())
    data[entry.header_offset + 30 + len("cat/1.png") + entry.compress_size // 2] ^= 0xFF
    archive.write_bytes(data)
    text = refusal(archive)
    assert (
        "1 of 5 images cannot be used, --max-bad allows 0: cat/1.png: cannot be read from the archive" in text
    )
    assert brightness(read_samples(archive, WANTED, None, max_bad=1)[0]) == [0, 2, 3, 4]


def test_an_archive_that_is_cut_off_is_refused(folder: Path) -> None:
    archive = pack(folder)
    archive.write_bytes(archive.read_bytes()[:-100])
    assert refusal(archive, max_bad=9).startswith(
        f"{archive}: not a folder, and not a zip archive or a damaged one"
    )


def test_an_image_over_the_limit_is_one_bad_image(folder: Path) -> None:
    with (folder / "cat/1.png").open("wb") as file:
        file.truncate(images.MAX_IMAGE_BYTES + 1)
    for source in (folder, pack(folder, zipfile.ZIP_DEFLATED)):
        samples, _ = read_samples(source, WANTED, None, max_bad=1)
        assert samples.skipped == ("cat/1.png: 33554433 bytes, the limit is 33554432",)


def test_images_are_resized_unless_their_size_must_be_exact(folder: Path) -> None:
    (folder / "cat/1.png").write_bytes(png(1, width=40, height=30))
    assert len(read_samples(folder, WANTED, None)[0]) == 5
    line = "cat/1.png: 40x30, the model takes 6x8; give --resize to scale images"
    assert refusal(folder, EXACT) == f"{folder}: 1 of 5 images cannot be used, --max-bad allows 0: {line}"
    assert read_samples(folder, EXACT, None, max_bad=1)[0].skipped == (line,)


def test_if_no_image_has_the_size_the_first_says_so(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(png(1, width=8, height=6))
    expected = "cat/0.png: 8x6, the model takes 6x8; give --resize to scale images"
    assert refusal(folder, EXACT) == refusal(folder, EXACT, max_bad=9) == expected


def test_the_size_of_a_photo_is_that_of_its_upright_form(tmp_path: Path) -> None:
    source = write(tmp_path / "set", ["0.png", "1.png"])
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("L", (8, 6), 77).save(source / "2.jpg", exif=turned)
    assert len(read_samples(source, EXACT, None)[0]) == 3
    Image.new("L", (6, 8), 77).save(source / "2.jpg", exif=turned)
    assert "2.jpg: 8x6, the model takes 6x8" in refusal(source, EXACT)


def test_images_for_a_model_that_takes_tensors_are_refused(folder: Path) -> None:
    assert refusal(folder, Wanted(INPUT, 2, None)) == (
        f"{folder}: images, but the model takes FP32 [1, 8, 6] and nothing says how to make that of an "
        "image; give --preprocess FILE, or --resize, --mean and --std, or an .npz"
    )


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", (3, 8, 6)), ("INT64", (1, 8, 6))])
def test_rules_that_make_something_else_are_refused(
    folder: Path, datatype: str, shape: tuple[int, ...]
) -> None:
    other = TensorInfo(name="input", datatype=datatype, shape=shape)
    assert refusal(folder, Wanted(other, 2, RULES)) == (
        f"preprocess makes FP32 [1, 8, 6], the model takes {datatype} {list(shape)}"
    )


def test_more_than_memory_holds_is_refused_with_what_to_do(folder: Path) -> None:
    side = 8192
    rules = Preprocess(color=Color.GRAY, height=side, width=side)
    wanted = Wanted(TensorInfo(name="input", datatype="FP32", shape=(1, side, side)), 2, rules)
    big = [LabelledImage("0.png", None, b"")] * 1_000_000
    with pytest.raises(
        InvalidInput, match=r"^1000000 images are 268435 GB as tensors; take fewer with --limit$"
    ):
        samples_of(big, wanted, LABELS)


def test_what_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder, zip archive or .npz file"
    assert refusal(tmp_path / "none.npz").endswith("none.npz: no such folder, zip archive or .npz file")
    assert refusal(tmp_path) == f"{tmp_path}: holds no image; looked for .jpeg, .jpg, .png, .webp"
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert "empty.zip: holds no image" in refusal(tmp_path / "empty.zip")
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert "x.npy: not a folder, and not a zip archive" in refusal(tmp_path / "x.npy")


# ---- tensors


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Thirty rows, each filled with its number, and labels that take turns."""
    x = np.broadcast_to(np.arange(30.0)[:, None, None, None], (30, 1, 8, 6))
    path = tmp_path / "windows.NPZ"
    with path.open("wb") as file:
        np.savez(file, x=x, y=np.arange(30) % 2)
    return path


@pytest.mark.parametrize("wanted", [Wanted(INPUT, 2, None), WANTED, EXACT])
def test_tensors_are_taken_as_they_are(arrays: Path, wanted: Wanted) -> None:
    samples, labels = read_samples(arrays, wanted, None)
    assert labels == ("0", "1")
    assert samples.inputs.dtype == np.float32
    assert samples.inputs[:, 0, 0, 0].tolist() == list(range(30))
    assert samples.classes is not None
    assert samples.classes.tolist() == [number % 2 for number in range(30)]
    assert samples.encoded_bytes is None
    assert read_samples(arrays, wanted, LABELS)[1] == LABELS
    assert refusal(arrays, wanted, ("a", "b", "c")) == "--labels names 3 classes, the model has 2 outputs"


def test_a_limit_draws_rows_with_their_labels(arrays: Path) -> None:
    samples, _ = read_samples(arrays, WANTED, None, limit=9, seed=3)
    again, _ = read_samples(arrays, WANTED, None, limit=9, seed=3)
    other, _ = read_samples(arrays, WANTED, None, limit=9, seed=4)
    rows = samples.inputs[:, 0, 0, 0].astype(np.int64)
    assert len(set(rows.tolist())) == 9
    assert samples.classes is not None
    assert samples.classes.tolist() == (rows % 2).tolist()
    assert np.array_equal(samples.inputs, again.inputs)
    assert not np.array_equal(samples.inputs, other.inputs)


def test_tensors_that_do_not_fit_name_the_file(arrays: Path) -> None:
    other = TensorInfo(name="input", datatype="FP32", shape=(3, 8, 6))
    assert refusal(arrays, Wanted(other, 2, None)) == (
        f"{arrays}: x is [30, 1, 8, 6], the model takes [n, 3, 8, 6]"
    )


# ---- images in memory


def test_images_in_memory_become_samples() -> None:
    some = [
        LabelledImage(f"{label}/{at}.png", label, png(at)) for at, label in enumerate(("dog", "cat", "dog"))
    ]
    samples = samples_of(some, WANTED, LABELS)
    assert brightness(samples) == [0, 1, 2]
    assert samples.classes is not None
    assert samples.classes.tolist() == [1, 0, 1]
    assert samples.encoded_bytes == sum(len(image.data) for image in some) / 3


def test_images_in_memory_may_have_no_labels_but_not_some() -> None:
    good, free = LabelledImage("cat/0.png", "cat", png(0)), LabelledImage("1.png", None, png(1))
    assert samples_of([free, free], WANTED, LABELS).classes is None
    with pytest.raises(InvalidInput, match=r"^1\.png: lies in no folder, so it has no label$"):
        samples_of([good, free], WANTED, LABELS)
    with pytest.raises(InvalidInput, match=r"^cat/0\.png: label 'cat' is not one of dog, bird$"):
        samples_of([good], WANTED, ("dog", "bird"))
    with pytest.raises(InvalidInput, match=r"^there are no images to measure on$"):
        samples_of([], WANTED, LABELS)


def test_images_in_memory_that_are_damaged_are_named_or_skipped() -> None:
    some = [LabelledImage("cat/0.png", "cat", png(0)), LabelledImage("cat/bad.png", "cat", b"x")]
    reason = r"cat/bad\.png: image: not one of JPEG, PNG, WEBP"
    with pytest.raises(InvalidInput, match=f"^1 of 2 images cannot be used, --max-bad allows 0: {reason}$"):
        samples_of(some, WANTED, LABELS)
    assert len(samples_of(some, WANTED, LABELS, max_bad=1)) == 1


# ---- parts


def numbered(count: int) -> Samples:
    rows = np.arange(count)
    return Samples(rows[:, None].astype(np.float32), rows % 7, 12.5, ("bad.png: no image",))


def dealt(parts: Parts) -> list[list[int]]:
    return [
        part.inputs[:, 0].astype(int).tolist()
        for part in (parts.calibration, parts.certification, parts.test)
    ]


SHARES = st.tuples(*[st.integers(1, 50)] * 3).map(lambda w: (w[0] / sum(w), w[1] / sum(w), w[2] / sum(w)))


@settings(deadline=None)
@given(count=st.integers(10, 300), seed=st.integers(0, 2**40), shares=SHARES)
def test_parts_are_disjoint_and_lose_nothing(
    count: int, seed: int, shares: tuple[float, float, float]
) -> None:
    parts = partition(numbered(count), seed, shares)
    rows = dealt(parts)
    assert sorted(row for part in rows for row in part) == list(range(count))
    assert all(len(part) > 0 for part in rows)
    for share, of_part in zip(shares, rows, strict=True):
        assert abs(len(of_part) - share * count) <= 2
    for part in (parts.calibration, parts.certification, parts.test):
        assert part.classes is not None
        assert part.classes.tolist() == [int(row) % 7 for row in part.inputs[:, 0]]
        assert part.encoded_bytes == 12.5
        assert part.skipped == ()
    assert rows == dealt(partition(numbered(count), seed, shares))


@settings(deadline=None)
@given(count=st.integers(30, 300), seeds=st.sets(st.integers(0, 10_000), min_size=2, max_size=2))
def test_another_seed_gives_other_parts(count: int, seeds: set[int]) -> None:
    first, second = (dealt(partition(numbered(count), seed)) for seed in seeds)
    assert sorted(first[0]) != sorted(second[0]) or sorted(first[1]) != sorted(second[1])


def test_the_usual_shares_are_thirty_fifty_and_twenty_percent() -> None:
    assert [len(rows) for rows in dealt(partition(numbered(500), 0))] == [150, 250, 100]
    assert [len(rows) for rows in dealt(partition(numbered(10), 0))] == [3, 5, 2]


def test_every_row_is_as_likely_in_every_part() -> None:
    times = np.zeros(20)
    for seed in range(2000):
        times[dealt(partition(numbered(20), seed))[1]] += 1
    assert np.abs(times / 2000 - 0.5).max() < 0.05  # 4.5 standard deviations


def test_too_few_samples_or_odd_shares_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^there are 9 samples to use, at least 10 are needed$"):
        partition(numbered(9), 0)
    for shares in ((0.5, 0.5, 0.5), (1.0, 0.5, -0.5), (0.5, 0.5, 0.0)):
        with pytest.raises(InvalidInput, match="shares must be positive and add up to 1, got"):
            partition(numbered(10), 0, shares)
    with pytest.raises(InvalidInput, match="--seed must be at least 0, got -1"):
        partition(numbered(10), -1)


def test_taken_rows_come_in_their_order() -> None:
    taken = numbered(10).take(np.array([7, 2]))
    assert taken.inputs[:, 0].tolist() == [7, 2]
    assert taken.classes is not None
    assert taken.classes.tolist() == [0, 2]
    assert Samples(np.zeros((3, 1)), None, None).take(np.array([1])).classes is None
