"""Cropping and resizing against literal formulas in float64, NumPy and torch."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from progdistill.data import open_dataset

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def resized(array: np.ndarray, resolution, **options) -> np.ndarray:
    """One (H, W, C) image through `open_dataset`, as (H, W, C)."""
    images = open_dataset(array[None], resolution=resolution, **options).images()
    return images[0].permute(1, 2, 0).numpy()


def sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def cubic(x: float, a: float = -0.5) -> float:
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


KERNELS = {
    "area": (0.5, lambda x: 1.0),
    "bilinear": (1.0, lambda x: 1 - x),
    "bicubic": (2.0, cubic),
    "lanczos": (3.0, lambda x: sinc(x) * sinc(x / 3)),
}


def literal_weights(size: int, new: int, interpolation: str) -> np.ndarray:
    """Rows of weights: the kernel, stretched by the ratio if that is above 1, at each old pixel's centre."""
    support, kernel = KERNELS[interpolation]
    ratio = size / new
    stretch = max(ratio, 1.0)
    weights = np.zeros((new, size))
    for row in range(new):
        for column in range(size):
            distance = abs((column + 0.5) - (row + 0.5) * ratio) / stretch
            if distance < support:
                weights[row, column] = kernel(distance)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize(("size", "new"), [((47, 31), (13, 10)), ((9, 7), (20, 33)), ((24, 60), (12, 45))])
def test_every_filter_is_its_formula(size, new, interpolation):
    image = pixels(*size, 3) // 2 + 64  # so that no filter overshoots 0..255 after the first direction
    rows, columns = (literal_weights(a, b, interpolation) for a, b in zip(size, new, strict=True))
    exact = np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(np.float64))
    result = resized(image, new, center_crop=False, interpolation=interpolation)
    assert result.shape == (*new, 3)
    # Each direction is rounded to whole levels; the second one's weights can add up to 1.6 in magnitude.
    assert np.abs(result - exact).max() <= 0.5 + 0.5 * np.abs(rows).sum(axis=1).max() + 1e-6


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("new", [(16, 16), (21, 30)])
def test_torch_agrees_within_a_level(interpolation, new):
    image = pixels(64, 96, 3)
    result = resized(image, new, center_crop=False, interpolation=interpolation).astype(int)
    floats = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(floats, new, mode=interpolation, antialias=True).clamp(0, 255)
    assert np.abs(result - exact[0].permute(1, 2, 0).numpy()).max() <= 1


def test_area_is_the_mean_of_each_box():
    image = pixels(24, 40, 3)
    one_direction = resized(image, (24, 8), center_crop=False, interpolation="area")
    assert np.array_equal(one_direction, np.floor(image.reshape(24, 8, 5, 3).mean(axis=2) + 0.5))
    both = resized(image, (6, 8), center_crop=False, interpolation="area")
    assert np.abs(both - image.reshape(6, 4, 8, 5, 3).mean(axis=(1, 3))).max() <= 1
    blocks = pixels(6, 8, 3).repeat(4, axis=0).repeat(5, axis=1)
    assert np.array_equal(resized(blocks, (6, 8), center_crop=False, interpolation="area"), blocks[::4, ::5])


@pytest.mark.parametrize(
    ("size", "resolution", "box"),
    [
        ((10, 17), (10, 10), (0, 3, 10, 10)),
        ((17, 10), (10, 10), (3, 0, 10, 10)),
        ((12, 30), (6, 10), (0, 5, 12, 20)),
        ((31, 12), (10, 6), (5, 0, 20, 12)),
        ((8, 8), (8, 8), (0, 0, 8, 8)),
    ],
)
def test_the_crop_is_the_largest_centred_box_of_the_aspect(size, resolution, box):
    image = pixels(*size, 3)
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    if part.shape[:2] != resolution:
        part = part.reshape(resolution[0], 2, resolution[1], 2, 3).mean(axis=(1, 3))
    assert np.abs(resized(image, resolution, interpolation="area") - part).max() <= 1


def test_a_number_is_a_square_and_what_fits_is_not_touched():
    image = pixels(9, 9, 3)
    assert np.array_equal(resized(image, 9, interpolation="lanczos"), image)
    assert resized(pixels(50, 9, 3), 4).shape == (4, 4, 3)
    assert resized(pixels(2, 50, 3), (50, 1)).shape == (50, 1, 3)
    assert np.ptp(resized(np.full((50, 33, 3), 77, np.uint8), (7, 20))) == 0


def encode(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("cache", ["1000000", "0"])
def test_every_source_gives_the_same_pixels(tmp_path, cache, monkeypatch):
    """Images of one size by every way in; the truth is the array itself, resized one by one."""
    monkeypatch.setenv(CACHE, cache)
    arrays = pixels(5, 20, 33, 3)
    expected = np.stack([resized(array, (8, 12)) for array in arrays]).transpose(0, 3, 1, 2)
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index, array in enumerate(arrays):
            (tmp_path / "folder" / f"{index}.png").write_bytes(encode(array))
            archive.writestr(f"{index}.png", encode(array))
    np.savez(tmp_path / "a.npz", images=arrays)
    np.save(tmp_path / "a.npy", arrays.transpose(0, 3, 1, 2))
    sources = [tmp_path / name for name in ("folder", "a.zip", "a.npz", "a.npy")]
    sources += [torch.from_numpy(arrays), list(arrays), [Image.fromarray(a) for a in arrays], open_dataset(arrays)]
    for source in sources:
        dataset = open_dataset(source, resolution=(8, 12))
        assert dataset.shape == (3, 8, 12)
        assert np.array_equal(dataset.images().numpy(), expected)
        assert np.array_equal(dataset.batch(torch.tensor([3, 0]))[0].numpy(), expected[[3, 0]])
    grey = open_dataset(arrays[..., 0], resolution=8)
    assert grey.shape == (1, 8, 8)
    assert np.array_equal(grey.images()[2, 0].numpy(), resized(arrays[2, ..., :1], 8)[..., 0])


def test_digits_keep_their_labels():
    pytest.importorskip("sklearn")
    dataset = open_dataset("digits", resolution=16)
    assert dataset.shape == (1, 16, 16)
    assert torch.equal(dataset.labels, open_dataset("digits").labels)


@pytest.mark.parametrize("cache", ["1000000", "0"])
def test_images_of_many_sizes_become_one_set(tmp_path, cache, monkeypatch):
    monkeypatch.setenv(CACHE, cache)
    arrays = [pixels(20, 33, 3), pixels(9, 9), pixels(64, 7, 3)]
    for index, array in enumerate(arrays):
        (tmp_path / f"{index}.png").write_bytes(encode(array))
    with pytest.raises(ValueError, match="resolution="):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="resolution="):
        open_dataset(arrays)
    colour = [np.stack([a] * 3, axis=2) if a.ndim == 2 else a for a in arrays]
    expected = np.stack([resized(array, 8) for array in colour]).transpose(0, 3, 1, 2)
    for source in (tmp_path, arrays):
        assert np.array_equal(open_dataset(source, resolution=8).images().numpy(), expected)


def test_the_orientation_counts_before_the_crop(tmp_path):
    values = pixels(6, 20, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif.tobytes())
    result = open_dataset(tmp_path, resolution=(10, 6)).images()[0].permute(1, 2, 0).numpy()
    assert np.array_equal(result, np.rot90(values, -1)[5:15])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resolution": 0}, ValueError, "from 1 to 4096 pixels a side, not 0"),
        ({"resolution": (8, 5000)}, ValueError, r"not \(8, 5000\)"),
        ({"resolution": 8.0}, TypeError, r"a number of pixels or a pair \(height, width\), not 8.0"),
        ({"resolution": "64"}, TypeError, "not '64'"),
        ({"resolution": True}, TypeError, "not True"),
        ({"resolution": (8, 8, 3)}, TypeError, r"not \(8, 8, 3\)"),
        ({"resolution": 8, "interpolation": "nearest"}, ValueError, "'nearest'; use one of area, bilinear"),
        ({"center_crop": False}, ValueError, "give resolution= as well"),
        ({"interpolation": "area"}, ValueError, "give resolution= as well"),
    ],
)
def test_wrong_options_are_explained(options, error, message):
    with pytest.raises(error, match=message):
        open_dataset(pixels(2, 9, 9), **options)
