"""From samples in [-1, 1] to what the user asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "uint8")


def to_output(x: Tensor, output_type: str) -> Any:
    """Samples in [-1, 1] as images of that type (see `delivered`)."""
    return delivered(FORMS[FORM_OF[output_type]](x), output_type)


def delivered(images: Tensor, output_type: str) -> Any:
    """What the user asked for, from images in the form that it is made of (`FORM_OF`).

    Returns:
        "pt": float tensor (B, C, H, W) in [0, 1]; "np": float32 array (B, H, W, C); "uint8": tensor (B, H, W, C) of
        rounded bytes, both tensors where the images are; "pil": list of images of the same bytes.
    """
    if output_type in ("pt", "uint8"):
        return images
    if output_type == "np":
        return images.movedim(1, -1).float().cpu().numpy()
    return [_to_pil(pixels) for pixels in images.cpu().numpy()]


def _clamped(x: Tensor) -> Tensor:
    return x.clamp(-1, 1)


def _unit(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)  # as diffusers does


def rounded(images: Tensor) -> Tensor:
    """Bytes (B, ..., C) of images (B, C, ...) in [0, 1], those of the "pil" images."""
    return (images.float() * 255).round().to(torch.uint8).movedim(1, -1).contiguous()


def _bytes(x: Tensor) -> Tensor:
    return rounded(_unit(x))


# What samples can be turned into where they are made, and which of it each output type is made of.
FORMS = {"samples": _clamped, "pt": _unit, "uint8": _bytes}
FORM_OF = {"pt": "pt", "np": "pt", "uint8": "uint8", "pil": "uint8"}


def check_output_type(output_type: str, sample_shape: tuple[int, ...]) -> None:
    """Raises ValueError for an unknown type, or for pictures of data that is not 1- or 3-channel images."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"unknown output_type {output_type!r}; use one of {', '.join(OUTPUT_TYPES)}")
    if output_type == "pil" and not (len(sample_shape) == 3 and sample_shape[0] in (1, 3)):
        raise ValueError(f"samples of shape {sample_shape} are not grey or RGB images; use output_type='pt' or 'np'")


def _to_pil(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
