"""Colour kinds that are neither plain grey nor plain RGB, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from progdistill.data import open_dataset


def opened(tmp_path, image: Image.Image, name: str = "a.png", **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return open_dataset(tmp_path).images()[0].numpy()


def random_pixels(*shape: int, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape, dtype=dtype)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.astype(np.float64) / 255
    return np.floor(colour * weight + 255 * (1 - weight) + 0.5).astype(np.uint8)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = random_pixels(7, 9, high=65536, dtype=np.uint16)
    values[0, :3] = 0, 65535, 257 * 200
    result = opened(tmp_path, Image.fromarray(values))
    assert np.array_equal(result, np.rint(values.astype(np.float64) * 255 / 65535)[None])


def test_alpha_is_laid_over_white(tmp_path):
    values = random_pixels(7, 9, 4)
    result = opened(tmp_path, Image.fromarray(values))
    assert np.array_equal(result.transpose(1, 2, 0), over_white(values[..., :3], values[..., 3:]))


def test_opaque_alpha_changes_nothing(tmp_path):
    values = random_pixels(7, 9, 4)
    values[..., 3] = 255
    assert np.array_equal(opened(tmp_path, Image.fromarray(values)).transpose(1, 2, 0), values[..., :3])


def test_grey_with_alpha_stays_grey(tmp_path):
    values = random_pixels(7, 9, 2)
    result = opened(tmp_path, Image.fromarray(values, "LA"))
    assert np.array_equal(result, over_white(values[..., 0], values[..., 1])[None])


def test_a_transparent_grey_level_becomes_white(tmp_path):
    values = random_pixels(7, 9, high=4)
    result = opened(tmp_path, Image.fromarray(values), transparency=2)
    assert np.array_equal(result, np.where(values == 2, 255, values)[None])


@pytest.mark.parametrize("transparent", [None, 1])
def test_palettes_become_rgb(tmp_path, transparent):
    values, palette = random_pixels(7, 9, high=4), random_pixels(4, 3)
    image = Image.fromarray(values, "P")
    image.putpalette(palette.tobytes())
    expected = palette[values]
    options = {}
    if transparent is not None:
        expected[values == transparent] = 255
        options = {"transparency": transparent}
    assert np.array_equal(opened(tmp_path, image, **options).transpose(1, 2, 0), expected)


def test_black_and_white_is_grey(tmp_path):
    values = random_pixels(7, 9) > 127
    assert np.array_equal(opened(tmp_path, Image.fromarray(values)), (values * np.uint8(255))[None])


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    result = opened(tmp_path, image, "a.jpg", quality=100)
    assert result.shape == (3, 8, 8)
    assert np.abs(result.astype(int) - np.array([0, 255, 255])[:, None, None]).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    values = random_pixels(6, 4, 3)
    upright = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1),
        7: values[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(values, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = opened(tmp_path, Image.fromarray(values), f"a.{suffix}", exif=exif.tobytes(), lossless=True)
    assert np.array_equal(result.transpose(1, 2, 0), upright)


def test_a_damaged_exif_block_does_no_harm(tmp_path):
    values = random_pixels(6, 4, 3)
    exif = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + bytes(range(40))
    assert np.array_equal(opened(tmp_path, Image.fromarray(values), exif=exif).transpose(1, 2, 0), values)
