"""Calls of group_norm_silu: their tensors, what they give, and the formula that it is held against."""

from typing import NamedTuple

import torch

from progdistill import ops
from tolerance import assert_within_rule


class Norm(NamedTuple):
    """One call: its sizes, and which tensors it is given. `shift` counts its rows; 0: one dimension; None: none.

    `sources`: what is normalised is returned too.
    """

    channels: int
    skip: int = 0
    groups: int = 1
    height: int = 3
    width: int = 3
    samples: int = 2
    shift: int | None = None
    scale_shift: int = 0
    residual: bool = False
    silu: bool = True
    sources: bool = False
    eps: float = 1e-6
    mean: float = 0.0
    deviation: float = 1.0
    values_dtype: torch.dtype = torch.float32

    @property
    def options(self) -> dict:
        """The arguments of the public function that are no tensors."""
        sources = {"return_sources": True} if self.sources else {}
        return {"groups": self.groups, "eps": self.eps, "silu": self.silu, **sources}


def tensors_of(norm: Norm, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """The call's tensors, images channels_last, in the order of the public function."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def image(channels):
        value = norm.deviation * draw(norm.samples, channels, norm.height, norm.width) + norm.mean
        return value.to(dtype).contiguous(memory_format=torch.channels_last)

    every = norm.channels + norm.skip
    t = {"x": image(norm.channels), "weight": draw(every), "bias": draw(every)}
    if norm.shift is not None:
        t["shift"] = draw(*([norm.shift] * (norm.shift > 0)), norm.channels)
    if norm.scale_shift:
        t["scale_shift"] = draw(norm.scale_shift, 2 * every)
    t |= {name: value.to(norm.values_dtype) for name, value in t.items() if name != "x"}
    if norm.skip:
        t["skip"] = image(norm.skip)
    if norm.residual:
        t["residual"] = image(norm.channels)
    return t


def literal(
    x,
    weight,
    bias,
    groups,
    eps,
    skip=None,
    shift=None,
    scale_shift=None,
    residual=None,
    silu=True,
    return_sources=False,
):
    """The docstring's formula: group by group, its mean and its variance."""
    u = x if residual is None else x + residual
    if shift is not None:
        u = u + shift.reshape(-1, x.shape[1], 1, 1)
    whole = u if skip is None else torch.cat((u, skip), dim=1)
    normed = []
    for group in whole.chunk(groups, dim=1):
        mean = group.mean(dim=(1, 2, 3), keepdim=True)
        variance = ((group - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
        normed.append((group - mean) / torch.sqrt(variance + eps))
    y = torch.cat(normed, dim=1) * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    if scale_shift is not None:
        scale, after = scale_shift[:, : whole.shape[1], None, None], scale_shift[:, whole.shape[1] :, None, None]
        y = y * (1 + scale) + after
    if silu:
        y = y / (1 + torch.exp(-y))
    if return_sources:
        return y, u, skip
    return y if residual is None else (y, u)


def named_outputs(found) -> dict[str, torch.Tensor]:
    """What a call gives, by name: y, and as far as there are any u and skip."""
    found = found if isinstance(found, tuple) else (found,)
    return {name: value for name, value in zip(("y", "u", "skip"), found, strict=False) if value is not None}


def mixture_of(outputs) -> list[torch.Tensor]:
    """A random gradient for each of some outputs."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]


def results(function, norm: Norm, tensors, device="cpu", **options) -> dict[str, torch.Tensor]:
    """What the function gives for the tensors, and the gradients of a random mixture of it, by name."""
    t = {name: value.detach().to(device).requires_grad_() for name, value in tensors.items()}
    outputs = named_outputs(function(**t, **norm.options, **options))
    every = list(outputs.values())
    gradients = torch.autograd.grad(every, list(t.values()), mixture_of(every))
    named = outputs | {f"d{n}": g for n, g in zip(t, gradients, strict=True)}
    return {name: value.detach().cpu() for name, value in named.items()}


def by_sample(name: str, value: torch.Tensor, norm: Norm) -> torch.Tensor:
    """What the rule takes for a sample: gradients for all samples at once are one."""
    shared = value.dim() == 1 or len(value) != norm.samples
    return value.reshape(1, -1) if shared else value


def check(backend, norm: Norm, dtype: torch.dtype) -> None:
    tensors = tensors_of(norm, dtype)
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    plain = results(ops.group_norm_silu, norm, tensors, backend="reference")
    got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == plain[name].dtype and value.shape == plain[name].shape
        if value.dim() == 4:
            assert value.is_contiguous(memory_format=torch.channels_last), name
        try:
            assert_within_rule(*(by_sample(name, which[name], norm) for which in (got, plain, exact)))
        except AssertionError as error:
            raise AssertionError(f"{name} of {norm} in {dtype}: {error} times what is allowed") from error
