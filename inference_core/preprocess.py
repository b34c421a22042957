"""Preprocessing as data: from the bytes a device sends to the tensor a model takes.

The rules travel in the bundle and one function runs them at both ends, so the edge may send the
cloud the original JPEG and both see the same tensor.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from inference_core.errors import InvalidInput, TooLarge

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 16_000_000
_JPEG = b"\xff\xd8\xff"
_TURNING = (b"Exif\0", b"tiff:Orientation")  # where an image says how it is to be turned
# Pillow only warns between its limit and twice that; here a bomb is refused at once.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Each strange file would be another line in the log, and another text to remember.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


class Color(StrEnum):
    """The colour space a model takes; images in the other one are converted."""

    RGB = "rgb"
    GRAY = "gray"


class Fit(StrEnum):
    """How an image of another aspect ratio is brought to size."""

    STRETCH = "stretch"
    CROP = "crop"


class Resample(StrEnum):
    """The filter used to resize."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Layout(StrEnum):
    """The order of a tensor's axes, the batch axis left out."""

    CHW = "chw"
    HWC = "hwc"


_MODES = {Color.RGB: "RGB", Color.GRAY: "L"}
_COLORSPACES = {Color.RGB: "RGB", Color.GRAY: "GRAY"}
_PLAIN = {"YCbCr": Color.RGB, "Gray": Color.GRAY}
_CONVERTIBLE = {"1", "L", "RGB", "P", "YCbCr"}
_RESAMPLE = {
    Resample.NEAREST: Image.Resampling.NEAREST,
    Resample.BILINEAR: Image.Resampling.BILINEAR,
    Resample.BICUBIC: Image.Resampling.BICUBIC,
}


class Preprocess(BaseModel):
    """`(pixel * scale - mean) / std` per channel, after orientation, colour and size.

    The result is float32 of shape `[channels, height, width]` or `[height, width, channels]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    color: Color = Color.RGB
    height: int = Field(gt=0, le=8192)
    width: int = Field(gt=0, le=8192)
    fit: Fit = Fit.STRETCH
    resample: Resample = Resample.BILINEAR
    layout: Layout = Layout.CHW
    scale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                many = "1 number" if self.channels == 1 else f"1 or {self.channels} numbers"
                raise ValueError(f"{name} must hold {many}, the images are {self.color}")
        if min(self.std) <= 0:
            raise ValueError("std must hold positive numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            factor, offset = _factor_and_offset(self.scale, self.mean, self.std)
            if not np.isfinite(factor * np.float32(255) - offset).all():
                raise ValueError("scale, mean and std take a white pixel out of float32")
        return self

    @property
    def channels(self) -> int:
        """3 for colour, 1 for gray."""
        return 3 if self.color is Color.RGB else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """The tensor's shape without the batch axis."""
        if self.layout is Layout.CHW:
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)

    def tensor(self, data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
        """The encoded image `data` as a model input of shape `[1, *self.shape]`, float32.

        Raises what `open_image` and `convert` raise.
        """
        return self.convert(open_image(data, max_pixels))

    def convert(self, picture: "Picture") -> NDArray[np.float32]:
        """`tensor` for what `open_image` gave; here its pixels are decoded.

        Raises `InvalidInput` for an image that is truncated or damaged.
        """
        fitted = _fit(picture.pixels(self.color), self)
        pixels = fitted.astype(np.float32).reshape(self.height, self.width, self.channels)
        factor, offset = _factor_and_offset(self.scale, self.mean, self.std)
        pixels *= factor
        pixels -= offset
        if self.layout is Layout.CHW:
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)[None]

    def warm_up(self) -> None:
        """Decode one small image of each format, so that the first request need not load the decoders."""
        for form in FORMATS:
            encoded = io.BytesIO()
            Image.new(_MODES[self.color], (8, 8)).save(encoded, form)
            self.tensor(encoded.getvalue())


@lru_cache(maxsize=64)
def _factor_and_offset(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The formula rearranged to `pixel * factor - offset`: two operations for each pixel."""
    deviation = np.asarray(std)
    return (scale / deviation).astype(np.float32), (np.asarray(mean) / deviation).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image by its header, which has been found in order. `plain` is the colour of the pixels of a JPEG
    that needs no turning; None is any other."""

    data: bytes
    width: int
    height: int
    plain: Color | None

    def pixels(self, color: Color) -> NDArray[np.uint8]:
        """The image, upright and in `color`: uint8 `[height, width]` or `[height, width, 3]`.

        Raises `InvalidInput` for one that is truncated or damaged.
        """
        if self.plain is color:
            # Libjpeg without Pillow around it: to the bit the same, in a fifth of the time for small ones.
            with contextlib.suppress(ValueError):  # with what it finds strange, Pillow may know what to do
                decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(self.data, _COLORSPACES[color])
                return decoded if color is Color.RGB else decoded[:, :, 0]
        return np.asarray(_upright(_opened(self.data), _MODES[color]))


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """The image in `data` by its header; no pixel is decoded yet.

    Raises `TooLarge` for more than `max_pixels` and `InvalidInput` for what is not a still JPEG, PNG or WebP,
    or has channels that have no plain meaning here (transparency, CMYK, 16 bits).
    """
    if not data:
        raise InvalidInput("image: the body is empty")
    plain = _plain_jpeg(data)
    if plain is not None:
        _check_size(plain.width, plain.height, max_pixels)
        return plain
    image = _opened(data, max_pixels)
    _check_header(image, max_pixels)
    return Picture(data, image.width, image.height, None)


def _plain_jpeg(data: bytes) -> Picture | None:
    """A JPEG that says nothing of how it is to be turned, and whose colours are gray or the usual three."""
    if not data.startswith(_JPEG) or any(word in data for word in _TURNING):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    color = _PLAIN.get(colorspace)
    return None if color is None else Picture(data, width, height, color)


def _opened(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"image: over the limit of {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInput(f"image: not one of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise _damaged(error) from error


def decode(data: bytes, color: Color, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels of the image in `data`, upright and in `color`; raises what `open_image` and `pixels` do."""
    return open_image(data, max_pixels).pixels(color)


def _upright(image: ImageFile.ImageFile, mode: str) -> Image.Image:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image) if image.getexif() else image
        return upright if upright.mode == mode else upright.convert(mode)
    except Exception as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> InvalidInput:
    return InvalidInput(f"image: truncated or damaged ({type(error).__name__})")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"image: {width}x{height} is {width * height} pixels, the limit is {max_pixels}")


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    _check_size(image.width, image.height, max_pixels)
    # Phones put depth maps and previews behind the photo, as further JPEGs (MPO): the photo comes first.
    try:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:
        raise _damaged(error) from error
    if frames != 1:
        raise InvalidInput(f"image: {frames} frames, the limit is 1")
    # Pillow opens 16 bits for each of red, green and blue as RGB and would drop half of them unseen.
    deep = any(";16" in str(tile.args) for tile in image.tile)
    if deep or image.mode not in _CONVERTIBLE or "transparency" in image.info:
        raise InvalidInput(
            f"image: mode {image.mode} has {len(image.getbands())} channels, with transparency or "
            "more than 8 bits or four inks; send gray (1 channel) or RGB (3 channels), 8 bits each"
        )


def _fit(pixels: NDArray[np.uint8], rules: Preprocess) -> NDArray[np.uint8]:
    size = (rules.width, rules.height)
    if pixels.shape[1::-1] == size:
        return pixels
    image, filtered = Image.fromarray(pixels), _RESAMPLE[rules.resample]
    if rules.fit is Fit.CROP:
        return np.asarray(ImageOps.fit(image, size, filtered))
    return np.asarray(image.resize(size, filtered))
