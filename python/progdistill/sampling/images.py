"""From samples in [-1, 1] to what the user asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "uint8")


def to_output(x: Tensor, output_type: str) -> Any:
    """Images in diffusers' conventions, (x / 2 + 0.5) clamped to [0, 1].

    Returns:
        "pt": float tensor (B, C, H, W); "np": float32 array (B, H, W, C); "uint8": tensor (B, H, W, C) of rounded bytes
        where x is; "pil": list of images of the same bytes.
    """
    images = (x / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    if output_type == "np":
        return images.movedim(1, -1).float().cpu().numpy()
    pixels = (images.float() * 255).round().to(torch.uint8).movedim(1, -1).contiguous()
    return pixels if output_type == "uint8" else [_to_pil(array) for array in pixels.cpu().numpy()]


def check_output_type(output_type: str, sample_shape: tuple[int, ...]) -> None:
    """Raises ValueError for an unknown type, or for pictures of data that is not 1- or 3-channel images."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"unknown output_type {output_type!r}; use one of {', '.join(OUTPUT_TYPES)}")
    if output_type == "pil" and not (len(sample_shape) == 3 and sample_shape[0] in (1, 3)):
        raise ValueError(f"samples of shape {sample_shape} are not grey or RGB images; use output_type='pt' or 'np'")


def _to_pil(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
