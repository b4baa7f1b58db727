"""Grids of images, written as PNG."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from progdistill.core.files import replace_atomic

_BACKGROUND = (255, 255, 255)
_INK = (17, 24, 39)
_MARGIN = 12
_VISIBLE_SIDE = 64
_LABEL_CHARACTERS = 28


def image_grid(images: Tensor, *, columns: int, scale: int | None = None, gap: int = 2) -> Image.Image:
    """Images side by side, row by row, on white: an RGB picture.

    `images`: uint8 (N, C, H, W) with C = 1 (grey) or 3 (RGB), any device. `columns` images stand in a row,
    fewer if there are not as many. Each is enlarged `scale` times without interpolation; None takes the
    smallest scale at which the longer side has 64 pixels. `gap` is the space between images in pixels.

    Raises TypeError for images that are not uint8, ValueError for other shapes, columns or scale below 1 and
    a negative gap.
    """
    if columns < 1 or gap < 0:
        raise ValueError(f"columns must be at least 1 and gap at least 0, got columns={columns}, gap={gap}")
    tiles = _tiles(images, scale)
    height, width = tiles.shape[1:3]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), _BACKGROUND)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        canvas.paste(Image.fromarray(tile), (column * (width + gap), row * (height + gap)))
    return canvas


def labelled_rows(
    rows: Sequence[tuple[str, Tensor]], *, scale: int | None = None, title: str | None = None
) -> Image.Image:
    """One row of images for each (label, images), the label at its left: an RGB picture on white.

    Meant for the same noise sent through a teacher and its students, so that column i shows one image as each
    of them draws it. All rows' images are uint8 (N, C, H, W) of one height and width, and N may differ;
    `scale` is as in `image_grid`. Long labels are wrapped; the font is Pillow's own, which has no letters
    beyond ASCII.

    Raises ValueError for no rows or for different image sizes, and what `image_grid` raises.
    """
    if not rows:
        raise ValueError("labelled_rows needs at least one row, got none")
    strips = [image_grid(images, columns=len(images), scale=scale) for _, images in rows]
    sizes = {tuple(images.shape[2:]) for _, images in rows}
    if len(sizes) > 1:
        raise ValueError(f"all rows need images of one size (H, W), got {sorted(sizes)}")

    font = ImageFont.load_default(size=15)
    labels = ["\n".join(textwrap.wrap(label, _LABEL_CHARACTERS)) for label, _ in rows]
    boxes = [_text_size(label, font) for label in labels]
    label_width = max(width for width, _ in boxes)
    heights = [max(strip.height, height) for strip, (_, height) in zip(strips, boxes, strict=True)]
    picture_width = 3 * _MARGIN + label_width + max(strip.width for strip in strips)

    title_font = ImageFont.load_default(size=19)
    heading = "" if title is None else "\n".join(_wrapped_to(title, title_font, picture_width - 2 * _MARGIN))
    heading_height = _text_size(heading, title_font)[1] + _MARGIN if heading else 0
    gap = 6
    picture_height = 2 * _MARGIN + heading_height + sum(heights) + gap * (len(rows) - 1)
    canvas = Image.new("RGB", (picture_width, picture_height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.multiline_text((_MARGIN, _MARGIN), heading, fill=_INK, font=title_font)
    top = _MARGIN + heading_height
    for strip, label, height in zip(strips, labels, heights, strict=True):
        draw.multiline_text((_MARGIN, top + height / 2), label, fill=_INK, font=font, anchor="lm")
        canvas.paste(strip, (2 * _MARGIN + label_width, top + (height - strip.height) // 2))
        top += height + gap
    return canvas


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes the picture as PNG, atomically: a reader sees the old file or the whole new one."""
    with replace_atomic(path) as temporary:
        image.save(temporary, format="PNG")


def _tiles(images: Tensor, scale: int | None) -> np.ndarray:
    """Enlarged images as uint8 (N, H, W, 3)."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a uint8 tensor with values 0..255, got {found}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images must have the shape (N, 1 or 3, H, W), none 0, got {tuple(images.shape)}")
    if scale is None:
        scale = -(-_VISIBLE_SIDE // max(images.shape[2:]))
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    pixels = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(pixels.repeat(scale, axis=1).repeat(scale, axis=2))


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height to reserve, from the point where the text is drawn."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    return math.ceil(right), math.ceil(bottom)


def _wrapped_to(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    characters = max(len(text), 1)
    while characters > 1:
        lines = textwrap.wrap(text, characters)
        if all(font.getlength(line) <= width for line in lines):
            return lines
        characters -= 1
    return textwrap.wrap(text, 1)
