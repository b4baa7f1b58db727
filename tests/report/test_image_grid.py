from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from progdistill.report import image_grid, labelled_rows, save_png


def some_images(count: int, channels: int = 3, height: int = 4, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 200, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_where_it_belongs(channels: int) -> None:
    images = some_images(5, channels)
    picture = np.asarray(image_grid(images, columns=2, scale=3, gap=1))
    assert picture.shape == (3 * 12 + 2, 2 * 18 + 1, 3)
    seen = np.zeros(picture.shape[:2], dtype=bool)
    for index, image in enumerate(images.expand(-1, 3, -1, -1)):
        top, left = (index // 2) * 13, (index % 2) * 19
        block = picture[top : top + 12, left : left + 18]
        expected = np.kron(image.permute(1, 2, 0).numpy(), np.ones((3, 3, 1), dtype=np.uint8))
        np.testing.assert_array_equal(block, expected)
        seen[top : top + 12, left : left + 18] = True
    assert (picture[~seen] == 255).all()


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (28, 3), (32, 2), (64, 1), (256, 1)])
def test_small_images_are_enlarged_to_64_pixels_or_more(side: int, scale: int) -> None:
    assert image_grid(some_images(1, 1, side, side), columns=4).size == (side * scale, side * scale)


def test_row_is_no_wider_than_its_images() -> None:
    assert image_grid(some_images(3), columns=10, scale=1, gap=0).size == (18, 4)


def test_inputs_are_not_changed_and_views_are_accepted() -> None:
    images = some_images(4, 3, 8, 8)
    view = images.permute(0, 1, 3, 2)[:, :, ::2]
    before = images.clone()
    image_grid(view, columns=2)
    assert torch.equal(images, before)


def strips_of(picture: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(first row, last row) of each vertical run of lines that hold the colour."""
    rows = (np.asarray(picture) == colour).all(2).any(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], rows.astype(int), [0]])))
    return [(int(start), int(end) - 1) for start, end in edges.reshape(-1, 2)]


def solid(colour: tuple[int, int, int], count: int) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(count, 3, 8, 8)


def test_labelled_rows_stand_below_each_other_with_ink_at_their_left() -> None:
    red, green = (255, 0, 0), (0, 255, 0)
    picture = labelled_rows([("teacher, 8 steps", solid(red, 3)), ("student", solid(green, 5))], scale=8)
    (red_rows,), (green_rows,) = strips_of(picture, red), strips_of(picture, green)
    assert red_rows[1] - red_rows[0] == green_rows[1] - green_rows[0] == 63
    assert red_rows[1] < green_rows[0]
    pixels = np.asarray(picture)
    first_column = min(np.flatnonzero((pixels == red).all(2).any(0)))
    assert first_column == min(np.flatnonzero((pixels == green).all(2).any(0)))
    for top, bottom in (red_rows, green_rows):
        assert (pixels[top : bottom + 1, :first_column] < 128).any()


LONG = "a student that was distilled in many rounds, and then some more, to be sure"


@pytest.mark.parametrize("label", ["a", LONG, "unbreakable" * 9, ""])
@pytest.mark.parametrize("title", [None, "T", LONG * 3])
def test_no_text_is_clipped_or_drawn_over_the_images(label: str, title: str | None) -> None:
    red = (255, 0, 0)
    picture = labelled_rows([(label, solid(red, 2)), ("b", solid(red, 2))], scale=2, title=title)
    pixels = np.asarray(picture)
    assert (pixels == red).all(2).sum() == 2 * 2 * 16 * 16
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3), pixels[:, :4].reshape(-1, 3)])
    assert (border == 255).all() and (pixels[:, -4:] == 255).all()


def test_png_is_lossless_and_replaces_the_old_file(tmp_path: Path) -> None:
    picture = image_grid(some_images(4), columns=2)
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    save_png(picture, path)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (some_images(2).float(), {}, TypeError, "float32"),
        (some_images(2, 2), {}, ValueError, r"\(2, 2, 4, 6\)"),
        (some_images(2)[0], {}, ValueError, r"\(3, 4, 6\)"),
        (some_images(2)[:0], {}, ValueError, r"\(0, 3"),
        (some_images(2), {"columns": 0}, ValueError, "columns=0"),
        (some_images(2), {"gap": -1}, ValueError, "gap=-1"),
        (some_images(2), {"scale": 0}, ValueError, "got 0"),
    ],
)
def test_bad_input_is_named(images: Tensor, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        image_grid(images, **{"columns": 2, **options})


def test_bad_rows_are_named() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        labelled_rows([])
    with pytest.raises(ValueError, match=r"\[\(4, 6\), \(8, 8\)\]"):
        labelled_rows([("a", some_images(2)), ("b", some_images(2, 3, 8, 8))])
