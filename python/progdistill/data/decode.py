"""One encoded image (PNG, JPEG, WebP, BMP) to uint8 pixels.

Whatever Pillow makes of a damaged file, the caller sees a ValueError that names the image.
"""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

MAX_ENCODED_BYTES = 256 * 2**20
MAX_PIXELS = 2**26
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY_MODES = ("1", "L", "LA", "La", *_SIXTEEN_BIT_MODES)
_ORIENTATION_TAG = 0x0112


class Header(NamedTuple):
    """What an image says of itself before its pixels are decoded; sizes are those after EXIF rotation."""

    height: int
    width: int
    grey: bool


def read_header(stream: BinaryIO, where: str) -> Header:
    """Size and colour kind of the image in `stream`, without decoding it.

    Raises:
        ValueError: no readable image, or one above the limit of `MAX_PIXELS`; the message holds `where`.
    """
    try:
        with Image.open(stream, formats=_FORMATS) as image:
            return _header_of(image)
    except Exception as error:
        raise _broken(where, error) from error


def decode(stream: BinaryIO, where: str) -> np.ndarray:
    """Pixels of the image in `stream`.

    Grey images stay grey, 16-bit ones are scaled by 255 / 65535, transparency is laid over white, palettes
    and other colour spaces become RGB, and the EXIF orientation is applied.

    Returns:
        uint8, (H, W) if grey, else (H, W, 3).

    Raises:
        ValueError: a damaged or oversized image; the message holds `where`.
    """
    try:
        encoded = stream.read(MAX_ENCODED_BYTES + 1)
        check_encoded_size(len(encoded))
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _header_of(image)
            return image_to_array(image)
    except Exception as error:
        raise _broken(where, error) from error


def check_encoded_size(size: int) -> None:
    """Refuses images of more than `MAX_ENCODED_BYTES` before they fill the memory.

    Raises:
        ValueError: `size` bytes are more than that.
    """
    if size > MAX_ENCODED_BYTES:
        raise ValueError(f"more than {MAX_ENCODED_BYTES} encoded bytes, the limit for one file")


def image_to_array(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image, as `decode` converts them: uint8, (H, W) if it is grey, else (H, W, 3).

    Raises:
        ValueError: a mode that has no sensible 8-bit form.
    """
    grey = image.mode in _GREY_MODES
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES:
        return _sixteen_to_eight_bits(np.asarray(image))
    if image.mode == "F":
        raise ValueError("floating-point images (mode F) are not supported; save them with 8 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _over_white(np.asarray(image.convert("LA" if grey else "RGBA")))
    return np.array(image.convert("L" if grey else "RGB"))


def channels_first(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) pixels as (channels, H, W); grey ones are repeated where 3 channels are wanted."""
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, (channels, *pixels.shape))
    return pixels.transpose(2, 0, 1)


def _header_of(image: Image.Image) -> Header:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS}, the limit for one file")
    if _orientation(image) >= 5:
        width, height = height, width
    return Header(height, width, image.mode in _GREY_MODES)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; from 5 on, height and width are exchanged."""
    if "exif" not in image.info:  # getexif() of a PNG without it would decode the whole image to look for one
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block does not spoil the pixels, and Pillow raises many kinds of error
        return 1
    return orientation if orientation in range(1, 9) else 1


def _sixteen_to_eight_bits(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError(f"grey values {wide.min()}..{wide.max()} do not fit 16 bits; save the image with 8 bits")
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    colour, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    flat = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return flat[..., 0] if flat.shape[-1] == 1 else flat


def _broken(where: str, error: Exception) -> ValueError:
    reason = "its content is none of these" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return ValueError(f"cannot read the image at {where} as PNG, JPEG, WebP or BMP: {reason}. Replace or remove it.")
