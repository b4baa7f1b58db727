"""Calls of padded_sum: their tensors, what they give, and the formula that it is held against."""

from typing import NamedTuple

import torch

from progdistill import ops
from tolerance import assert_within_rule


class Sum(NamedTuple):
    """One call: its sizes and what it is given. `shift` counts its rows; 0: one dimension; None: none."""

    channels: int
    height: int = 4
    width: int = 4
    shift: int | None = None
    residual: bool = True
    padding: int = 1
    samples: int = 2
    shift_dtype: torch.dtype = torch.float32


def tensors_of(case, dtype, seed=0):
    """The call's tensors, images channels_last."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def image():
        value = draw(case.samples, case.channels, case.height, case.width).to(dtype)
        return value.contiguous(memory_format=torch.channels_last)

    t = {"x": image()}
    if case.residual:
        t["residual"] = image()
    if case.shift is not None:
        t["shift"] = draw(*([case.shift] * (case.shift > 0)), case.channels).to(case.shift_dtype)
    return t


def literal(x, residual=None, shift=None, padding=0):
    u = x if residual is None else x + residual
    if shift is not None:
        u = u + shift.reshape(-1, x.shape[1], 1, 1)
    if padding == 0:
        return u
    below = u.new_zeros(*u.shape[:2], padding, u.shape[3])
    right = u.new_zeros(*u.shape[:2], u.shape[2] + padding, padding)
    return u, torch.cat((torch.cat((u, below), dim=2), right), dim=3)


def results(function, case, tensors, device="cpu", used=("u", "padded"), **options):
    """What the function gives, and the gradients of a random mixture of those results that are used, by name."""
    t = {name: value.detach().to(device).requires_grad_() for name, value in tensors.items()}
    found = function(**t, padding=case.padding, **options)
    named = dict(zip(("u", "padded"), found if case.padding else (found,), strict=False))
    outputs = [value for name, value in named.items() if name in used]
    generator = torch.Generator().manual_seed(1)
    mixture = [torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs]  # exact in every dtype
    mixture = [value.contiguous(memory_format=torch.channels_last) for value in mixture]
    gradients = torch.autograd.grad(outputs, list(t.values()), mixture)
    named |= {f"d{name}": gradient for name, gradient in zip(t, gradients, strict=True)}
    return {name: value.detach().cpu() for name, value in named.items()}


def check(backend, case, dtype, used=("u", "padded")):
    """Images have the bits of plain PyTorch; sums over many pixels, in another order, are as good."""
    tensors = tensors_of(case, dtype)
    exact = results(literal, case, {name: value.double() for name, value in tensors.items()}, used=used)
    plain = results(ops.padded_sum, case, tensors, used=used, backend="reference")
    got = results(ops.padded_sum, case, tensors, backend.device, used=used, backend=backend.name)
    assert got.keys() == plain.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == plain[name].dtype and value.shape == exact[name].shape
        assert value.dim() != 4 or value.is_contiguous(memory_format=torch.channels_last), name
        if value.dim() == 4:
            assert torch.equal(value, plain[name]), (name, case)
        shared = value.dim() == 1 or len(value) != case.samples
        rows = (which[name].reshape(1, -1) if shared else which[name] for which in (got, plain, exact))
        try:
            assert_within_rule(*rows)
        except AssertionError as error:
            raise AssertionError(f"{name} of {case} in {dtype}: {error} times what is allowed") from error
    if case.padding:
        assert not got["padded"][:, :, case.height :].any() and not got["padded"][:, :, :, case.width :].any()
