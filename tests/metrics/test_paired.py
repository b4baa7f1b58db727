from __future__ import annotations

import numpy as np
import pytest
import torch

from progdistill.metrics import mean_and_standard_error, paired_distance


def test_distance_is_the_root_mean_square_difference_of_each_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(6, 3, 5, 7, generator=generator) * 2 - 1 for _ in range(2))
    expected = [
        float(np.sqrt(np.mean((x - y) ** 2))) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)
    ]
    found = paired_distance(a, b)
    assert found.shape == (6,) and found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


def test_distance_of_equal_and_of_opposite_images() -> None:
    images = torch.ones(2, 1, 8, 8)
    assert paired_distance(images, images).tolist() == [0.0, 0.0]
    assert paired_distance(images, -images.bfloat16()).tolist() == [2.0, 2.0]


def test_mean_and_standard_error_by_hand() -> None:
    mean, error = mean_and_standard_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx((14 / 3) ** 0.5 / 2, rel=1e-15)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), ValueError, r"\(2, 3\) and \(3, 3\)"),
        (torch.zeros(0, 3), torch.zeros(0, 3), ValueError, "empty"),
        (torch.zeros(3), torch.zeros(3), ValueError, "shape"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3), TypeError, "first set.*uint8"),
        (torch.zeros(2, 3), torch.full((2, 3), 255.0), ValueError, "second set.*255"),
        (torch.zeros(2, 3), torch.tensor([[0, 0, float("nan")], [0, 0, 0]]), ValueError, "1 of 2 images"),
    ],
)
def test_bad_images_are_named(a: torch.Tensor, b: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        paired_distance(a, b)


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], [1.0, float("inf")]])
def test_bad_values_for_a_standard_error_are_refused(values: list) -> None:
    with pytest.raises(ValueError, match="values"):
        mean_and_standard_error(torch.tensor(values))
