"""Between the bytes of a file, 0..255, and the numbers of a diffusion model, -1..1."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor, *, flip: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [-1, 1]: images / 127.5 - 1, the convention of Salimans & Ho's released code.

    The arithmetic is float32 (float64 if `dtype` is) and is rounded once to `dtype`.

    Args:
        images: uint8, (B, C, H, W); any shape without `flip`.
        flip: bool, (B,): the samples to mirror horizontally.
        dtype: a floating-point type of the result.

    Returns:
        A tensor of `images`' shape and device.

    Raises:
        TypeError: `images` is not uint8, `flip` not bool or `dtype` not floating point.
        ValueError: `flip` does not hold one value an image.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (0..255), not {images.dtype}; to_uint8 converts [-1, 1] to it")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type such as torch.float32, not {dtype}")
    if flip is not None:
        images = _mirror(images, flip)
    return images.to(torch.promote_types(dtype, torch.float32)).div_(127.5).sub_(1.0).to(dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Bytes of images in [-1, 1]: round((x + 1) * 127.5) limited to 0..255; ties go to even, NaN becomes 0.

    Rounding, not truncation, makes this the inverse of `to_float`, for bfloat16 images too.

    Args:
        x: floating point, any shape, nominally in [-1, 1].

    Returns:
        uint8, of `x`'s shape and device.

    Raises:
        TypeError: `x` is not floating point.
    """
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be floating point in [-1, 1], not {x.dtype}")
    scaled = x.to(torch.promote_types(x.dtype, torch.float32)).add(1.0).mul_(127.5)
    return scaled.round_().clamp_(0.0, 255.0).nan_to_num_(nan=0.0).to(torch.uint8)


def _mirror(images: Tensor, flip: Tensor) -> Tensor:
    if flip.dtype != torch.bool:
        raise TypeError(f"flip must be a bool tensor, not {flip.dtype}")
    if images.ndim != 4 or flip.shape != images.shape[:1]:
        raise ValueError(
            f"flip needs images of shape (B, C, H, W) and one value an image, "
            f"not images {tuple(images.shape)} and flip {tuple(flip.shape)}"
        )
    return torch.where(flip.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
