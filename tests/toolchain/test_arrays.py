"""Reading `.npz` files that may be wrong, damaged or hostile."""

import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_core.errors import InvalidInput, TooLarge
from inference_core.manifest import TensorInfo
from toolchain.arrays import read_npz

WINDOW = TensorInfo(name="input", datatype="FP32", shape=(2, 3))
X = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def read(
    path: Path, datatype: str = "FP32", shape: tuple[int, ...] = (2, 3), classes: int = 3
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    return read_npz(path, TensorInfo(name="input", datatype=datatype, shape=shape), classes, np.arange)


def refusal(path: Path, datatype: str = "FP32", shape: tuple[int, ...] = (2, 3)) -> str:
    """What the refusal says behind the name of the file."""
    with pytest.raises(InvalidInput) as caught:
        read(path, datatype, shape)
    file, text = str(caught.value).split(": ", 1)
    assert file == str(path)
    assert "\n" not in text
    return text


def test_arrays_come_as_they_were_stored(tmp_path: Path) -> None:
    x, y = read(save(tmp_path, x=X, y=np.array([2, 0, 1, 2], np.uint8), z=np.zeros(1)))
    assert np.array_equal(x, X)
    assert y is not None
    assert y.dtype == np.int64
    assert y.tolist() == [2, 0, 1, 2]


def test_compressed_arrays_without_labels(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=X)
    x, y = read(tmp_path / "data.npz")
    assert np.array_equal(x, X)
    assert y is None


def test_rows_are_drawn_from_their_number(tmp_path: Path) -> None:
    asked = []

    def draw(count: int) -> NDArray[np.int64]:
        asked.append(count)
        return np.array([1, 3])

    x, y = read_npz(save(tmp_path, x=X, y=np.array([2, 0, 1, 2])), WINDOW, 3, draw)
    assert asked == [4]
    assert np.array_equal(x, X[[1, 3]])
    assert y is not None
    assert y.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("stored", "datatype", "taken"),
    [
        ("<f8", "FP32", "<f4"),
        (">f4", "FP32", "<f4"),
        ("<f2", "FP32", "<f4"),
        ("<f4", "FP16", "<f2"),
        ("<i4", "INT64", "<i8"),
        ("<i8", "INT32", "<i4"),
        ("<i8", "UINT8", "u1"),
        ("u1", "INT8", "i1"),
        ("<u8", "INT64", "<i8"),
        ("?", "BOOL", "?"),
    ],
)
def test_types_become_the_models_where_nothing_is_lost(
    tmp_path: Path, stored: str, datatype: str, taken: str
) -> None:
    x, _ = read(save(tmp_path, x=X.astype(stored)), datatype)
    assert x.dtype == np.dtype(taken)
    assert x.dtype.isnative
    assert np.array_equal(x, X.astype(stored))


def test_columns_first_become_rows_first(tmp_path: Path) -> None:
    x, _ = read(save(tmp_path, x=np.asfortranarray(X)))
    assert np.array_equal(x, X)
    assert x.flags.c_contiguous


def test_a_model_may_take_single_numbers(tmp_path: Path) -> None:
    x, _ = read(save(tmp_path, x=np.array([1.0, 2.0])), shape=())
    assert x.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("stored", "datatype", "says"),
    [
        (
            np.uint8,
            "FP32",
            "x holds uint8, the model takes FP32 (float32); "
            "store floats, scaled as the model was trained (pixels often are x / 255)",
        ),
        (np.float32, "INT64", "x holds float32, the model takes INT64 (int64)"),
        (np.float32, "BYTES", "x holds float32, the model takes BYTES (object)"),
        (np.int64, "BOOL", "x holds int64, the model takes BOOL (bool)"),
        (np.complex64, "FP32", "x holds complex64, the model takes FP32 (float32)"),
        (np.str_, "FP32", "x holds <U32, the model takes FP32 (float32)"),
    ],
)
def test_other_types_are_refused(tmp_path: Path, stored: type, datatype: str, says: str) -> None:
    assert refusal(save(tmp_path, x=X.astype(stored)), datatype) == says


@pytest.mark.parametrize("shape", [(4, 2, 4), (4, 3, 2), (4, 6), (2, 3)])
def test_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert refusal(save(tmp_path, x=np.zeros(shape))) == f"x is {list(shape)}, the model takes [n, 2, 3]"


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    assert refusal(save(tmp_path, x=np.zeros((0, 2, 3)))) == "x holds no rows"
    assert refusal(save(tmp_path, x=np.float32(1)), shape=()) == "x is [], the model takes [n]"
    assert refusal(save(tmp_path, X=X, labels=X)) == "holds no array 'x', only 'X', 'labels'"
    with zipfile.ZipFile(tmp_path / "data.npz", "w"):
        pass
    assert refusal(tmp_path / "data.npz") == "holds no array 'x', only nothing"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    x = np.zeros((600, 2, 3), np.float32)
    x[[517, 599], 1, 2] = value
    path = save(tmp_path, x=x)
    assert refusal(path) == "x: row 517 holds a number that is not finite as float32"
    with pytest.raises(InvalidInput, match="x: row 599 holds"):
        read_npz(path, WINDOW, 3, lambda count: np.arange(550, count))


def test_numbers_too_large_for_the_models_type_are_refused(tmp_path: Path) -> None:
    x = np.zeros((600, 2, 3))
    x[518, 0, 0] = 1e39
    assert refusal(save(tmp_path, x=x)) == "x: row 518 holds a number that is not finite as float32"
    x[518, 0, 0] = 2.0**31
    assert refusal(save(tmp_path, x=x.astype(np.int64)), "INT32") == (
        "x: row 518 holds a number outside -2147483648 to 2147483647 (int32)"
    )
    x[518, 0, 0] = -1
    assert refusal(save(tmp_path, x=x.astype(np.int8)), "UINT64").startswith(
        "x: row 518 holds a number outside 0"
    )


@pytest.mark.parametrize("value", [-1, 3, 2**40])
def test_a_label_out_of_range_is_refused(tmp_path: Path, value: int) -> None:
    expected = f"y: row 2 is {value}, the model's classes are 0 to 2"
    assert refusal(save(tmp_path, x=X, y=np.array([0, 1, value, value]))) == expected


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    needed = "y must hold whole numbers [n], the numbers of the classes; it is "
    assert refusal(save(tmp_path, x=X, y=np.zeros(4))) == f"{needed}float64 [4]"
    assert refusal(save(tmp_path, x=X, y=np.zeros(4, bool))) == f"{needed}bool [4]"
    assert refusal(save(tmp_path, x=X, y=np.zeros((4, 3), int))) == f"{needed}int64 [4, 3]"
    assert refusal(save(tmp_path, x=X, y=np.arange(3))) == "y holds 3 labels for the 4 rows of x"
    assert refusal(save(tmp_path, x=X, y=np.array([], int))) == "y holds 0 labels for the 4 rows of x"
    assert refusal(save(tmp_path, x=X, y=np.full(4, 2))) == "y: all rows are 2: one class"


def test_pickles_are_never_read(tmp_path: Path) -> None:
    says = "holds pickled Python objects, which are never read; store numbers"
    assert refusal(save(tmp_path, x=np.array([{}, []], dtype=object))) == f"x {says}"
    assert refusal(save(tmp_path, x=X, y=np.array([0, 1, 2, "0"], dtype=object))) == f"y {says}"


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_text("not an archive")
    assert refusal(path) == "not an .npz, or a damaged one (File is not a zip file)"
    path.write_bytes(save(tmp_path, x=X).read_bytes()[:-50])
    assert refusal(path).startswith("not an .npz, or a damaged one")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    assert refusal(path).startswith("not an .npz, or a damaged one")


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_a_flipped_byte_is_noticed(tmp_path: Path, writer: Any) -> None:
    path = tmp_path / "data.npz"
    writer(path, x=np.random.default_rng(0).random((100, 2, 3), np.float32))
    with zipfile.ZipFile(path) as archive:
        middle = archive.getinfo("x.npy").compress_size // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 0xFF
    path.write_bytes(data)
    assert refusal(path).startswith("not an .npz, or a damaged one")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = save(tmp_path, x=X, y=np.arange(4), z=X)
    data = bytearray(path.read_bytes())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:  # an entry of the archive's list
        struct.pack_into("<I", data, at + 24, 0xF0000000)  # how large it says it becomes
    path.write_bytes(data)
    with pytest.raises(TooLarge, match=r"data\.npz: 12079595520 bytes of arrays, the limit is 8589934592$"):
        read(path)


@pytest.mark.parametrize("rows", [10**12, 3, 5, -4])
def test_a_header_that_lies_about_the_size_is_not_believed(tmp_path: Path, rows: int) -> None:
    entry = BytesIO()
    np.lib.format.write_array_header_1_0(
        entry, {"descr": "<f4", "fortran_order": False, "shape": (rows, 2, 3)}
    )
    entry.write(X.tobytes())
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", entry.getvalue())
    text = refusal(tmp_path / "data.npz")
    held = f"x is said to be [{rows}, 2, 3], which is not what its {len(entry.getvalue())} bytes hold"
    assert text == ("x holds no rows" if rows < 1 else held)


def test_another_version_of_the_format_is_refused(tmp_path: Path) -> None:
    entry = BytesIO()
    np.lib.format.write_array(entry, X, version=(3, 0))
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", entry.getvalue())
    assert refusal(tmp_path / "data.npz") == (
        "x is stored in version (3, 0) of the .npy format, not as plain numbers"
    )
