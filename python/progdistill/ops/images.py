"""What the operations of a U-Net ask of images (B, C, H, W) and of numbers for their channels, and who serves them."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from progdistill.ops.backends import choose, declared
from progdistill.ops.checks import check_device
from progdistill.ops.layout import dense


def check_first_image(name: str, image: Tensor) -> None:
    """The image that a call's other tensors must fit: (B, C, H, W), float32, float64 or bfloat16."""
    if image.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise TypeError(f"{name} is {image.dtype}; expected float32, float64 or bfloat16")
    if image.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(image.shape)}; expected (B, C, H, W)")


def check_image(name: str, image: Tensor, x: Tensor, own_channels: bool = False) -> None:
    """An image has the shape of x, but for channels of its own, its dtype and its device."""
    channels = image.shape[1] if own_channels and image.dim() == 4 else x.shape[1]
    if image.shape != (x.shape[0], channels, *x.shape[2:]):
        wanted = "its samples, height and width" if own_channels else "that shape"
        raise ValueError(f"{name} has shape {tuple(image.shape)}, x has {tuple(x.shape)}; it must have {wanted}")
    if image.dtype != x.dtype:
        raise TypeError(f"{name} is {image.dtype}, x is {x.dtype}; convert one of them")
    check_device(name, image, "x", x)


def check_channel_values(name: str, values: Tensor, shapes: tuple[tuple[int, ...], ...], x: Tensor) -> None:
    """Numbers for channels have one of these shapes, are float32 or as x, and on its device."""
    if values.shape not in shapes:
        allowed = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {allowed} with x of {tuple(x.shape)}")
    if values.dtype not in (torch.float32, x.dtype):
        allowed = " or ".join(dict.fromkeys((str(torch.float32), str(x.dtype))))
        raise TypeError(f"{name} is {values.dtype}; beside a {x.dtype} x it may be {allowed}")
    check_device(name, values, "x", x)


def channels_last(image: Tensor | None) -> Tensor | None:
    """The image as the kernels read it; copies only if it is in another order."""
    return None if image is None else dense(image, torch.channels_last)


def row(values: Tensor | None) -> Tensor | None:
    """Numbers for channels as the kernels read them: those for all samples alike as (1, ...)."""
    return None if values is None else values.reshape(-1, values.shape[-1]).contiguous()


def is_left_to_reference(operation: str, device: str, dtype: torch.dtype, backend: str | None) -> bool:
    """Whether plain PyTorch serves: no kernel does, or the images are float64.

    Raises:
        ValueError, RuntimeError: the forced backend cannot serve (`backends.choose`).
        TypeError: it is one that takes no float64.
    """
    if choose(operation, device, backend) is declared()[operation]["reference"]:
        return True
    if dtype != torch.float64:
        return False
    forced = backend or os.environ.get("PROGDISTILL_BACKEND")
    if forced:
        raise TypeError(f'x is torch.float64; backend {forced!r} takes float32 and bfloat16: use backend="reference"')
    return True


# What torch.compiler.assume_constant_result sets, but without importing the compiler: it cannot trace the extension.
is_left_to_reference._dynamo_marked_constant = True
