"""What group_norm_silu asks of its arguments, and the errors that say so."""

from __future__ import annotations

import torch
from torch import Tensor


def check_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Everything that group_norm_silu asks of its arguments, but for what a backend does."""
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise TypeError(f"x is {x.dtype}; expected float32, float64 or bfloat16")
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, C, H, W)")
    samples, channels = x.shape[:2]
    if residual is not None:
        _check_image("residual", residual, x)
    normalised = channels
    if skip is not None:
        _check_image("skip", skip, x, own_channels=True)
        normalised += skip.shape[1]
    if groups < 1 or normalised % groups != 0:
        raise ValueError(f"groups is {groups}, which does not divide the {normalised} channels; use a divisor")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; use a positive number such as 1e-6")
    for name, values, shapes in (
        ("weight", weight, ((normalised,),)),
        ("bias", bias, ((normalised,),)),
        ("shift", shift, ((samples, channels), (1, channels), (channels,))),
        ("scale_shift", scale_shift, ((samples, 2 * normalised), (1, 2 * normalised))),
    ):
        if values is not None:
            _check_values(name, values, shapes, x)


def _check_image(name: str, image: Tensor, x: Tensor, own_channels: bool = False) -> None:
    channels = image.shape[1] if own_channels and image.dim() == 4 else x.shape[1]
    if image.shape != (x.shape[0], channels, *x.shape[2:]):
        wanted = "its samples, height and width" if own_channels else "that shape"
        raise ValueError(f"{name} has shape {tuple(image.shape)}, x has {tuple(x.shape)}; it must have {wanted}")
    if image.dtype != x.dtype:
        raise TypeError(f"{name} is {image.dtype}, x is {x.dtype}; convert one of them")
    _check_device(name, image, x)


def _check_values(name: str, values: Tensor, shapes: tuple[tuple[int, ...], ...], x: Tensor) -> None:
    if values.shape not in shapes:
        allowed = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {allowed} with x of {tuple(x.shape)}")
    if values.dtype not in (torch.float32, x.dtype):
        allowed = " or ".join(dict.fromkeys((str(torch.float32), str(x.dtype))))
        raise TypeError(f"{name} is {values.dtype}; beside a {x.dtype} x it may be {allowed}")
    _check_device(name, values, x)


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; move one of them")
