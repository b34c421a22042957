"""Real images, good and hostile, against a plain reference."""

import io
import itertools
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ValidationError

from inference_core.errors import InvalidInput, TooLarge
from inference_core.preprocess import MAX_PIXELS, Color, Fit, Layout, Preprocess, Resample, decode

Pixels = NDArray[np.uint8]
LOSSLESS: list[tuple[str, dict[str, Any]]] = [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})]
ORIENTATION = 0x0112


def encode(pixels: NDArray[Any] | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, form, **options)
    return out.getvalue()


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(height * width).integers(0, 256, shape, np.uint8)


def seen(data: bytes, color: Color = Color.RGB) -> Pixels:
    return np.asarray(decode(data, color))


def png(width: int, height: int, depth: int = 8, kind: int = 2, data: bytes = b"", *extra: bytes) -> bytes:
    """A PNG put together by hand: whatever the header says, over these compressed bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(e[:4], e[4:]) for e in extra), chunk(b"IDAT", data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@contextmanager
def as_in_production() -> Iterator[None]:
    """Pillow's warnings as they are outside of tests: only the one about bombs is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


# ---- the formula


def reference(pixels: Pixels, rules: Preprocess) -> NDArray[np.float64]:
    """The documented formula, one channel and one axis at a time."""
    planes = pixels.reshape(rules.height, rules.width, rules.channels).astype(np.float64)
    for channel in range(rules.channels):
        mean, std = rules.mean[channel % len(rules.mean)], rules.std[channel % len(rules.std)]
        planes[:, :, channel] = (planes[:, :, channel] * rules.scale - mean) / std
    return planes if rules.layout is Layout.HWC else np.moveaxis(planes, 2, 0)


@pytest.mark.parametrize("color", Color)
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.5,), (0.25,)), (None, None)])
def test_formula(color: Color, layout: Layout, mean: Any, std: Any) -> None:
    channels = 3 if color is Color.RGB else 1
    mean = mean or (0.485, 0.456, 0.406)[:channels]
    std = std or (0.229, 0.224, 0.225)[:channels]
    rules = Preprocess(color=color, height=5, width=7, layout=layout, mean=mean, std=std)
    pixels = noise(5, 7, channels)
    tensor = rules.tensor(encode(pixels))
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, *rules.shape)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor[0], reference(pixels, rules), rtol=1e-5, atol=1e-6)


@settings(max_examples=50)
@given(
    st.floats(1e-4, 10),
    st.lists(st.floats(-300, 300), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 300), min_size=3, max_size=3),
)
def test_formula_for_any_numbers(scale: float, mean: list[float], std: list[float]) -> None:
    rules = Preprocess(height=4, width=4, scale=scale, mean=tuple(mean), std=tuple(std))
    pixels = noise(4, 4)
    expected = reference(pixels, rules)
    largest = (255 * scale + np.abs(mean)) / np.array(std)
    error = np.abs(rules.tensor(encode(pixels))[0] - expected)
    assert (error <= 1e-6 * largest.reshape(3, 1, 1)).all()


def test_zero_and_full_scale() -> None:
    rules = Preprocess(color=Color.GRAY, height=1, width=2)
    np.testing.assert_array_equal(rules.tensor(encode(np.array([[0, 255]], np.uint8))), [[[[0, 1]]]])


@pytest.mark.parametrize(("form", "options"), LOSSLESS)
def test_lossless_forms_give_the_same_tensor(form: str, options: dict[str, Any]) -> None:
    rules = Preprocess(height=9, width=6)
    pixels = noise(9, 6)
    np.testing.assert_array_equal(rules.tensor(encode(pixels, form, **options)), rules.tensor(encode(pixels)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_close(options: dict[str, Any]) -> None:
    ramp = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    pixels = np.stack([ramp, 255 - ramp, ramp // 2], axis=2)
    assert np.abs(seen(encode(pixels, "JPEG", quality=95, **options)).astype(int) - pixels).max() < 16


def test_rules_that_went_through_json_give_the_same_tensor() -> None:
    rules = Preprocess(
        height=5, width=4, fit=Fit.CROP, resample=Resample.BICUBIC, mean=(0.1, 0.2, 0.3), layout=Layout.HWC
    )
    again = Preprocess.model_validate_json(rules.model_dump_json())
    data = encode(noise(11, 8), "JPEG")
    assert again == rules
    np.testing.assert_array_equal(again.tensor(data), rules.tensor(data))


# ---- size


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("resample", Resample)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 13), (16, 16), (40, 30), (2, 1000)])
def test_any_size_becomes_the_models(fit: Fit, resample: Resample, size: tuple[int, int]) -> None:
    rules = Preprocess(height=8, width=12, fit=fit, resample=resample)
    tensor = rules.tensor(encode(np.full((*size, 3), (10, 20, 30), np.uint8)))
    assert tensor.shape == (1, 3, 8, 12)
    for channel, value in enumerate((10, 20, 30)):
        np.testing.assert_allclose(tensor[0, channel], value / 255, atol=1e-6)


def test_nearest_doubles_pixels() -> None:
    pixels = noise(3, 4)
    rules = Preprocess(height=6, width=8, resample=Resample.NEAREST, layout=Layout.HWC, scale=1.0)
    expected = pixels.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(rules.tensor(encode(pixels))[0], expected)


def test_bilinear_averages_when_it_halves() -> None:
    pixels = np.array([[0, 100, 200, 100]] * 4, np.uint8)
    rules = Preprocess(color=Color.GRAY, height=2, width=2, scale=1.0)
    # The triangle filter of Pillow: weights 3, 3, 1 of 7, and 1, 3, 3.
    np.testing.assert_allclose(rules.tensor(encode(pixels))[0, 0], [[71, 143]] * 2, atol=1)


def thirds() -> bytes:
    pixels = np.zeros((4, 12, 3), np.uint8)
    for third in range(3):
        pixels[:, third * 4 : third * 4 + 4, third] = 255
    return encode(pixels)


def test_crop_keeps_the_middle() -> None:
    tensor = Preprocess(height=4, width=4, fit=Fit.CROP).tensor(thirds())
    np.testing.assert_array_equal(tensor[0].mean(axis=(1, 2)), [0, 1, 0])


def test_stretch_keeps_everything() -> None:
    tensor = Preprocess(height=4, width=3, resample=Resample.NEAREST).tensor(thirds())
    np.testing.assert_array_equal(tensor[0], np.eye(3)[:, None, :].repeat(4, axis=1))


# ---- orientation

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("form", "options"), LOSSLESS)
def test_orientation_is_undone(orientation: int, form: str, options: dict[str, Any]) -> None:
    pixels = noise(2, 3)
    data = encode(pixels, form, exif=tagged(orientation), **options)
    np.testing.assert_array_equal(seen(data), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_a_photo_is_undone_before_it_is_sized(orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    data = encode(pixels, "JPEG", quality=95, exif=tagged(orientation))
    expected = UPRIGHT[orientation](pixels)
    rules = Preprocess(height=expected.shape[0], width=expected.shape[1], layout=Layout.HWC)
    np.testing.assert_allclose(rules.tensor(data)[0], expected / 255, atol=0.05)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    pixels = noise(2, 3)
    np.testing.assert_array_equal(seen(encode(pixels, exif=tagged(orientation))), pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 50])
def test_broken_exif_is_ignored_or_refused(form: str, exif: bytes) -> None:
    data = encode(noise(8, 8), form, exif=exif)
    with as_in_production():
        try:
            assert decode(data, Color.RGB).shape == (8, 8, 3)
        except InvalidInput:
            return


# ---- colour


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_gray_becomes_three_equal_channels(form: str) -> None:
    data = encode(noise(4, 4, 1), form)
    rgb = seen(data)
    for channel in range(3):
        np.testing.assert_array_equal(rgb[:, :, channel], seen(data, Color.GRAY))


def test_colour_becomes_luma() -> None:
    pixels = noise(8, 8)
    luma = pixels @ np.array([299, 587, 114]) / 1000
    np.testing.assert_allclose(seen(encode(pixels), Color.GRAY), luma, atol=1)


def test_bilevel_and_opaque_palettes_are_taken() -> None:
    bits = np.array([[True, False], [False, True]])
    expected = np.where(bits, 255, 0)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(seen(encode(Image.fromarray(bits))), expected)
    palette = Image.fromarray(noise(8, 8)).quantize(16)
    np.testing.assert_array_equal(seen(encode(palette)), np.asarray(palette.convert("RGB")))


def transparent_palette(transparency: int | bytes) -> bytes:
    return encode(Image.fromarray(noise(8, 8)).quantize(4), transparency=transparency)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Image.new("RGBA", (4, 4))), id="PNG RGBA"),
        pytest.param(encode(Image.new("LA", (4, 4))), id="PNG LA"),
        pytest.param(encode(Image.new("I;16", (4, 4))), id="PNG 16-bit gray"),
        pytest.param(png(2, 2, 16, 2, zlib.compress(bytes(2 * 13))), id="PNG 16-bit RGB"),
        pytest.param(png(2, 2, 16, 6, zlib.compress(bytes(2 * 17))), id="PNG 16-bit RGBA"),
        pytest.param(png(2, 2, 16, 4, zlib.compress(bytes(2 * 9))), id="PNG 16-bit LA"),
        pytest.param(transparent_palette(1), id="palette, one colour"),
        pytest.param(transparent_palette(b"\0\x80\xff\xff"), id="palette, alpha"),
        pytest.param(encode(Image.new("RGB", (4, 4)), transparency=(0, 0, 0)), id="RGB, one colour"),
        pytest.param(encode(Image.new("L", (4, 4)), transparency=0), id="gray, one colour"),
        pytest.param(encode(Image.new("CMYK", (8, 8)), "JPEG"), id="JPEG CMYK"),
        pytest.param(encode(Image.new("RGBA", (4, 4)), "WEBP", lossless=True), id="WebP RGBA"),
    ],
)
@pytest.mark.parametrize("color", Color)
def test_channels_without_a_plain_meaning_are_refused(data: bytes, color: Color) -> None:
    with pytest.raises(InvalidInput, match="send gray"):
        decode(data, color)


# ---- what is not one still image


def animation(form: str, **options: Any) -> bytes:
    frames = [Image.fromarray(noise(8, 8 + extra)).resize((8, 8)) for extra in range(3)]
    return encode(frames[0], form, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0", id="one byte"),
        pytest.param(b"hello, world" * 100, id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param(b"%PDF-1.7", id="PDF"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", id="EPS"),
        pytest.param(encode(noise(4, 4), "GIF"), id="GIF"),
        pytest.param(animation("GIF"), id="animated GIF"),
        pytest.param(encode(noise(4, 4), "BMP"), id="BMP"),
        pytest.param(encode(noise(4, 4), "TIFF"), id="TIFF"),
        pytest.param(encode(noise(16, 16), "ICO"), id="ICO"),
        pytest.param(encode(noise(4, 4), "PPM"), id="PPM"),
    ],
)
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not one of JPEG, PNG, WEBP"):
        decode(data, Color.RGB)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_more_than_one_frame_is_refused(form: str) -> None:
    with pytest.raises(InvalidInput, match="3 frames, the limit is 1"):
        decode(animation(form), Color.RGB)


def test_the_first_picture_of_a_phones_photo_is_the_photo() -> None:
    photo = animation("MPO")
    with Image.open(io.BytesIO(photo)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("MPO", 3)
        first = np.asarray(image)
    assert np.array_equal(np.asarray(decode(photo, Color.RGB)), first)


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        decode(b"", Color.RGB)


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_image_is_refused_or_whole(form: str) -> None:
    name, options = FORMS[form]
    data = encode(noise(24, 20), name, **options)
    whole, refused = seen(data), 0
    lengths = sorted({*range(1, len(data), 13), *range(max(1, len(data) - 40), len(data))})
    for length in lengths:
        try:
            # Only what comes behind the last pixel may be missing.
            np.testing.assert_array_equal(seen(data[:length]), whole)
            assert length > len(data) - 30
        except InvalidInput:
            refused += 1
    assert refused > len(lengths) - 25


# ---- bombs


def webp_with_canvas(width: int, height: int) -> bytes:
    """A tiny WebP whose extended header claims a canvas of this size."""
    inner = encode(noise(8, 8), "WEBP", lossless=True)[12:]
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", len(canvas)) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_with_size(width: int, height: int) -> bytes:
    """A tiny JPEG whose frame header claims this size."""
    data = bytearray(encode(noise(8, 8), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def real_bomb(width: int, height: int) -> bytes:
    """A correct black PNG of this size, a thousandth of its pixels in bytes."""
    squeeze = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    return png(width, height, 8, 2, b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(10_000, 10_000), id="PNG header, 100 megapixels"),
        pytest.param(png(2**31 - 1, 2**31 - 1), id="PNG header, the largest"),
        pytest.param(png(MAX_PIXELS + 1, 1), id="PNG header, one pixel too many"),
        pytest.param(png(20_000, 9_000), id="PNG header, over Pillow's own limit"),
        pytest.param(jpeg_with_size(65_500, 65_500), id="JPEG header"),
        pytest.param(webp_with_canvas(16_383, 16_383), id="WebP header"),
        pytest.param(webp_with_canvas(65_535, 65_535), id="WebP header, the largest"),
    ],
)
def test_a_bomb_is_known_by_its_header(data: bytes) -> None:
    assert len(data) < 2000
    with pytest.raises(TooLarge, match=r"limit (is|of) 16000000"):
        decode(data, Color.RGB)


def test_a_real_bomb_is_not_decoded() -> None:
    data = real_bomb(10_000, 2_000)
    assert len(data) < 400_000
    with pytest.raises(TooLarge, match="10000x2000 is 20000000 pixels, the limit is 16000000"):
        Preprocess(height=8, width=8).tensor(data)


def test_the_limit_is_exact() -> None:
    data = encode(noise(10, 10))
    rules = Preprocess(height=4, width=4)
    assert rules.tensor(data, max_pixels=100).shape == (1, 3, 4, 4)
    with pytest.raises(TooLarge, match="10x10 is 100 pixels, the limit is 99"):
        rules.tensor(data, max_pixels=99)


def test_a_text_bomb_is_refused() -> None:
    text = b"zTXtComment\0\0" + zlib.compress(bytes(50_000_000), 1)
    data = png(2, 2, 8, 2, zlib.compress(bytes(2 * 7)), text)
    with pytest.raises(InvalidInput, match="damaged"):
        decode(data, Color.RGB)


# ---- any bytes at all

MAGIC = [
    b"",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8X",
]
RULES = Preprocess(height=4, width=4)
SEEDS = [encode(noise(12, 10), name, exif=tagged(6), **options) for name, options in FORMS.values()]
SEEDS += [animation("PNG"), animation("WEBP"), transparent_palette(1), encode(noise(6, 6, 1))]


def refused_or_finite(data: bytes) -> None:
    with as_in_production():
        try:
            tensor = RULES.tensor(data, max_pixels=1_000_000)
        except InvalidInput:
            return
    assert tensor.shape == (1, 3, 4, 4)
    assert np.isfinite(tensor).all()


@settings(max_examples=300)
@given(st.sampled_from(MAGIC), st.binary(max_size=200))
def test_random_bytes_are_refused(magic: bytes, data: bytes) -> None:
    refused_or_finite(magic + data)


@settings(max_examples=400)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_images_are_refused_or_shown(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        junk = data.draw(st.binary(max_size=6))
        damaged[at : at + data.draw(st.integers(0, 8))] = junk
        if not damaged:
            break
    refused_or_finite(bytes(damaged))


@settings(max_examples=200)
@given(st.binary(min_size=13, max_size=13), st.binary(max_size=40), st.binary(min_size=4, max_size=30))
def test_any_png_header_is_refused_or_shown(header: bytes, content: bytes, extra: bytes) -> None:
    """Correct checksums around arbitrary content, which random damage never gets past."""
    width, height, depth, kind = struct.unpack(">HHBB", header[:6])
    refused_or_finite(png(width % 50, height % 50, depth % 17, kind % 8, zlib.compress(content * 99), extra))


# ---- threads


def test_many_threads_see_what_one_sees() -> None:
    images = [
        encode(noise(10 + at % 7, 8 + at % 5), name, exif=tagged(1 + at % 8), **options)
        for at, (name, options) in zip(range(120), itertools.cycle(FORMS.values()), strict=False)
    ]
    images[::10] = [png(10_000, 10_000)] * 12

    def tensor(data: bytes) -> bytes:
        try:
            return RULES.tensor(data).tobytes()
        except TooLarge:
            return b"too large"

    expected = [tensor(data) for data in images]
    assert expected.count(b"too large") == 12
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tensor, images)) == expected


# ---- the rules themselves


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"height": 0}, "height"),
        ({"width": 8193}, "width"),
        ({"height": 1.5}, "height"),
        ({"color": "bgr"}, "color"),
        ({"fit": "pad"}, "fit"),
        ({"resample": "lanczos"}, "resample"),
        ({"layout": "nchw"}, "layout"),
        ({"colour": "rgb"}, "colour"),
        ({"mean": (0.5, 0.5)}, "mean must hold 1 or 3 numbers"),
        ({"mean": ()}, "mean must hold 1 or 3 numbers"),
        ({"color": "gray", "std": (1, 1, 1)}, "std must hold 1 number, the images are gray"),
        ({"std": (0.0,)}, "std must hold positive numbers"),
        ({"std": (1.0, -1.0, 1.0)}, "std must hold positive numbers"),
        ({"scale": 0.0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": float("inf")}, "finite"),
        ({"scale": float("nan")}, "scale"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"std": (float("inf"),)}, "finite"),
        ({"std": (1e-300,)}, "white pixel out of float32"),
        ({"scale": 1e300}, "white pixel out of float32"),
        ({"mean": (0.0, 1e300, 0.0)}, "white pixel out of float32"),
        ({"scale": 3e36}, "white pixel out of float32"),
    ],
)
def test_rules_that_make_no_sense_are_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Preprocess.model_validate({"height": 8, "width": 8, **change})


def test_small_numbers_that_belong_together_are_taken() -> None:
    rules = Preprocess(color=Color.GRAY, height=1, width=1, scale=1e-200, std=(1e-200,))
    assert rules.tensor(encode(np.full((1, 1), 7, np.uint8))) == 7


def test_rules_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RULES.height = 9


@pytest.mark.parametrize(
    ("color", "layout", "shape"),
    [
        (Color.RGB, Layout.CHW, (3, 5, 7)),
        (Color.RGB, Layout.HWC, (5, 7, 3)),
        (Color.GRAY, Layout.CHW, (1, 5, 7)),
        (Color.GRAY, Layout.HWC, (5, 7, 1)),
    ],
)
def test_shape(color: Color, layout: Layout, shape: tuple[int, ...]) -> None:
    assert Preprocess(color=color, height=5, width=7, layout=layout).shape == shape


def by_pillow(data: bytes, color: Color) -> NDArray[Any]:
    """The same image by the decoder that takes every format."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB" if color is Color.RGB else "L"))


@pytest.mark.parametrize("color", Color)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (32, 32), (100, 75)])
def test_a_jpeg_is_to_the_bit_what_pillow_makes_of_it(
    color: Color, mode: str, subsampling: int, progressive: bool, size: tuple[int, int]
) -> None:
    out = io.BytesIO()
    image = Image.fromarray(np.asarray(noise(*size))).convert(mode)
    image.save(out, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
    assert np.array_equal(decode(out.getvalue(), color), by_pillow(out.getvalue(), color))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused_by_either_way(cut: float) -> None:
    data = encode(noise(64, 64), "JPEG")
    with pytest.raises(InvalidInput, match="image: "):
        decode(data[: int(len(data) * cut)], Color.RGB)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_is_turned_as_its_xmp_says(orientation: int) -> None:
    out = io.BytesIO()
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    Image.fromarray(np.asarray(noise(16, 8))).save(out, "JPEG", xmp=xmp)
    with Image.open(io.BytesIO(out.getvalue())) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(out.getvalue(), Color.RGB), upright)


def test_nonsense_in_exif_is_not_logged() -> None:
    """Each would be a line in the log, and a text to remember for ever. Pytest filters: hence a process."""
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 5)).save(out, "JPEG", exif=exif)
    data = bytearray(out.getvalue())
    start = data.index(b"Exif") + 6
    data[start + 14 : start + 18] = b"\xff\xff\xff\x7f"  # the length of the first entry
    code = (
        "import sys, inference_core.preprocess as p, inference_core.errors as e\n"
        "try: p.decode(sys.stdin.buffer.read(), p.Color.RGB)\n"
        "except e.InvalidInput: pass\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, timeout=60
    )
    assert run.stderr == b""
