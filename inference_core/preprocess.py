"""Preprocessing as data: from the bytes a device sends to the tensor a model takes.

The rules travel in the bundle and one function runs them at both ends, so the edge may send the
cloud the original JPEG and both see the same tensor.
"""

import io
import warnings
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from inference_core.errors import InvalidInput, TooLarge

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 16_000_000
# Pillow only warns between its limit and twice that; here a bomb is refused at once.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


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
            factor, offset = self._factor_and_offset()
            if not np.isfinite(factor * np.float32(255) - offset).all():
                raise ValueError("scale, mean and std take a white pixel out of float32")
        return self

    def _factor_and_offset(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The formula rearranged to `pixel * factor - offset`: two operations for each pixel."""
        std = np.asarray(self.std)
        return (self.scale / std).astype(np.float32), (np.asarray(self.mean) / std).astype(np.float32)

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

        Raises what `decode` raises.
        """
        image = _fit(decode(data, self.color, max_pixels), self)
        pixels = np.asarray(image, dtype=np.float32).reshape(self.height, self.width, self.channels)
        factor, offset = self._factor_and_offset()
        values = pixels * factor - offset
        if self.layout is Layout.CHW:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, dtype=np.float32)[None]

    def warm_up(self) -> None:
        """Decode one small image of each format, so that the first request need not load the decoders."""
        for form in FORMATS:
            encoded = io.BytesIO()
            Image.new(_MODES[self.color], (8, 8)).save(encoded, form)
            self.tensor(encoded.getvalue())


def decode(data: bytes, color: Color, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in `data`, upright and in `color`.

    Raises `TooLarge` for more than `max_pixels`, judged by the header before any pixel is decoded,
    and `InvalidInput` for what is not a still JPEG, PNG or WebP, is truncated, or has channels that
    have no plain meaning here (transparency, CMYK, 16 bits).
    """
    if not data:
        raise InvalidInput("image: the body is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_header(image, max_pixels)
        upright = ImageOps.exif_transpose(image)
        return upright if upright.mode == _MODES[color] else upright.convert(_MODES[color])
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"image: over the limit of {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInput(f"image: not one of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise InvalidInput(f"image: truncated or damaged ({type(error).__name__})") from error


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise TooLarge(f"image: {image.width}x{image.height} is {pixels} pixels, the limit is {max_pixels}")
    # Phones put depth maps and previews behind the photo, as further JPEGs (MPO): the photo comes first.
    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
        raise InvalidInput(f"image: {getattr(image, 'n_frames', 0)} frames, the limit is 1")
    # Pillow opens 16 bits for each of red, green and blue as RGB and would drop half of them unseen.
    deep = any(";16" in str(tile.args) for tile in image.tile)
    if deep or image.mode not in _CONVERTIBLE or "transparency" in image.info:
        raise InvalidInput(
            f"image: mode {image.mode} has {len(image.getbands())} channels, with transparency or "
            "more than 8 bits or four inks; send gray (1 channel) or RGB (3 channels), 8 bits each"
        )


def _fit(image: Image.Image, rules: Preprocess) -> Image.Image:
    size = (rules.width, rules.height)
    if image.size == size:
        return image
    if rules.fit is Fit.CROP:
        return ImageOps.fit(image, size, _RESAMPLE[rules.resample])
    return image.resize(size, _RESAMPLE[rules.resample])
