"""Bytes to [-1, 1] and back, against the formulas in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progdistill.data import to_float, to_uint8


def all_bytes() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(2, 2, 8, 8)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1.2e-7), (torch.bfloat16, 2**-9)]
)
def test_to_float_is_the_paper_s_formula(dtype, tolerance):
    result = to_float(all_bytes(), dtype=dtype)
    expected = all_bytes().numpy().astype(np.float64) / 127.5 - 1
    assert result.dtype == dtype
    assert result.shape == (2, 2, 8, 8)
    assert np.abs(result.double().numpy() - expected).max() <= tolerance
    assert result.min() == -1 and result.max() == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_way_to_float_and_back_changes_nothing(dtype):
    assert torch.equal(to_uint8(to_float(all_bytes(), dtype=dtype)), all_bytes())


def test_to_uint8_rounds_and_clamps():
    x = np.concatenate([np.linspace(-1.3, 1.3, 20001), [-np.inf, np.inf]])
    expected = np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)
    assert np.array_equal(to_uint8(torch.from_numpy(x)).numpy(), expected)
    assert to_uint8(torch.tensor(2 * 100.6 / 255 - 1)) == 101


def test_not_a_number_becomes_black():
    assert to_uint8(torch.tensor([float("nan"), 1.0])).tolist() == [0, 255]


def test_flip_mirrors_the_chosen_samples_horizontally():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 2, 5), dtype=np.uint8))
    flip = torch.tensor([True, False, False, True])
    expected = images.numpy().astype(np.float64) / 127.5 - 1
    expected[[0, 3]] = expected[[0, 3]][:, :, :, ::-1]
    assert np.abs(to_float(images, flip=flip, dtype=torch.float64).numpy() - expected).max() < 1e-15


def test_arguments_are_left_alone():
    images, x = all_bytes(), torch.linspace(-1, 1, 5)
    to_float(images, flip=torch.tensor([True, True]))
    to_uint8(x)
    assert torch.equal(images, all_bytes())
    assert torch.equal(x, torch.linspace(-1, 1, 5))


def test_wrong_types_and_shapes_are_refused():
    with pytest.raises(TypeError, match=r"must be uint8.*float32"):
        to_float(torch.zeros(1, 1, 2, 2))
    with pytest.raises(TypeError, match="floating-point type"):
        to_float(all_bytes(), dtype=torch.int32)
    with pytest.raises(TypeError, match="bool"):
        to_float(all_bytes(), flip=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\(2, 2, 8, 8\) and flip \(3,\)"):
        to_float(all_bytes(), flip=torch.tensor([True, False, True]))
    with pytest.raises(TypeError, match="uint8"):
        to_uint8(all_bytes())
