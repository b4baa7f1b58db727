"""Cropping to an aspect and antialiased resizing, so that images of any size make one set."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from progdistill.data.image_store import ImageStore

Interpolation = Literal["area", "bilinear", "bicubic", "lanczos"]
DEFAULT_INTERPOLATION: Interpolation = "bilinear"
_MAX_SIDE = 4096
_FILTERS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Resize(NamedTuple):
    """Makes every image `height` x `width`; made by `resize_to`."""

    height: int
    width: int
    center_crop: bool
    interpolation: str

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The centre of an image, or all of it, at the new size.

        The crop is the largest box of the wanted aspect, its corner rounded down; then Pillow's filter, scaled to
        the step between pixels, averages (area: box; bilinear: triangle), rounding once a direction.

        Args:
            pixels: uint8, (H, W) or (H, W, 3).

        Returns:
            uint8, (height, width) or (height, width, 3).
        """
        if self.center_crop:
            pixels = self._cropped(pixels)
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((self.width, self.height), _FILTERS[self.interpolation], reducing_gap=None))

    def _cropped(self, pixels: np.ndarray) -> np.ndarray:
        rows, columns = pixels.shape[:2]
        height = min(rows, max(1, _rounded(columns * self.height, self.width)))
        width = min(columns, max(1, _rounded(rows * self.width, self.height)))
        top, left = (rows - height) // 2, (columns - width) // 2
        return pixels[top : top + height, left : left + width]


def resize_to(resolution: int | tuple[int, int] | None, center_crop: bool, interpolation: str) -> Resize | None:
    """What `open_dataset`'s options of the same names ask for; None without a resolution.

    Raises:
        TypeError: `resolution` is no int and no pair of them.
        ValueError: a side outside 1..4096, an unknown interpolation, or one of the others without a resolution.
    """
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"unknown interpolation {interpolation!r}; use one of {', '.join(get_args(Interpolation))}")
    if resolution is None:
        if not center_crop or interpolation != DEFAULT_INTERPOLATION:
            raise ValueError("center_crop and interpolation say how to reach a resolution; give resolution= as well")
        return None
    sides = resolution if isinstance(resolution, tuple | list) else (resolution, resolution)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise TypeError(f"resolution must be a number of pixels or a pair (height, width), not {resolution!r}")
    if not all(1 <= side <= _MAX_SIDE for side in sides):
        raise ValueError(f"resolution must be from 1 to {_MAX_SIDE} pixels a side, not {resolution!r}")
    return Resize(*sides, center_crop, interpolation)


class ResizedStore:
    """The images of another store, resized when they are asked for."""

    def __init__(self, store: ImageStore, resize: Resize) -> None:
        self._store, self._resize = store, resize
        self.shape = (store.shape[0], resize.height, resize.width)

    def __len__(self) -> int:
        return len(self._store)

    def take(self, indices: Tensor) -> Tensor:
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        # One by one: the store's own images may be far larger than the resized ones.
        for position, index in enumerate(indices):
            pixels = self._store.take(index[None])[0].permute(1, 2, 0).numpy()
            resized = self._resize(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            images[position] = torch.tensor(resized).reshape(*self.shape[1:], -1).permute(2, 0, 1)
        return images


def resized(store: ImageStore, resize: Resize | None) -> ImageStore:
    """`store`, or its images resized."""
    return store if resize is None else ResizedStore(store, resize)


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
