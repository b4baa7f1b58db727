"""The rule for tolerances.

A kernel's error against float64 is at most twice the error of the same maths in plain PyTorch at its precision, plus
one unit in the last place. Errors are maxima over a sample, because its weight sets the scale of all its numbers.
"""

import torch

LAST_PLACE = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7}


def largest(value: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each sample."""
    return value.abs().reshape(len(value), -1).amax(dim=1) if value.numel() else value.new_zeros(len(value))


def root_mean_square(value: torch.Tensor) -> torch.Tensor:
    """The root mean square of each sample."""
    return value.reshape(len(value), -1).square().mean(dim=1).sqrt() if value.numel() else value.new_zeros(len(value))


def assert_within_rule(got, plain, exact, size=largest) -> None:
    """Holds a kernel's result against plain PyTorch's, `exact` being what both should be."""
    error, allowed = size(got.double() - exact), size(plain.double() - exact)
    bound = 2 * allowed + LAST_PLACE[got.dtype] * size(exact)
    # In a sample of a few numbers plain PyTorch may be right by luck, so the sample's intermediate results count.
    if got.numel() < 50 * len(got):
        bound = bound + 4 * LAST_PLACE[got.dtype] * (1 + size(exact))
    assert (error <= bound).all(), (error / bound).max()
