"""The optimizer's operations on the parameters of a network, for benchmarks/kernels.py.

`gradient_norm + adamw_ema` is all that an update does after the backward pass: clipping by the norm of all gradients,
AdamW, the average of the weights, their bfloat16 twins. The textbook has `clip_grad_norm_`, `AdamW(fused=True)`,
`_foreach_lerp_` and `_foreach_copy_` for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernel_cases import FORWARD, Case, Contender, Inputs, as_it_is, serving
from progdistill import ops
from progdistill.nets.presets import PRESETS
from progdistill.nets.unet import UNet

# A large rate and small weights: an update that is left out or wrong shows in the weights' first digits.
RATE, SCALE, DECAY, MAX_NORM, UPDATES = 1e-2, 0.02, 0.99, 1.0, 10
# Weights, gradients, two moments, the average and half a twin; as much again for a second set; temporaries.
MOST_STATES = 16


def weight_shapes(network: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of a named network's parameters."""
    with torch.device("meta"):
        return tuple(tuple(parameter.shape) for parameter in UNet(PRESETS[network]).parameters())


def cases(device: str) -> list[Case]:
    """The optimizer's operations that this progdistill has."""
    found: list[Case] = []
    if hasattr(ops, "gradient_norm"):
        found += _gradient_norm(device)
    if hasattr(ops, "gradient_norm") and hasattr(ops, "adamw_ema"):
        found += _adamw_ema(device)
    return found


def _inputs(shapes: tuple[tuple[int, ...], ...], device: str, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(scale: float) -> list[Tensor]:
        return [scale * torch.randn(shape, generator=generator, device=device) for shape in shapes]

    t: Inputs = {
        "params": [nn.Parameter(value) for value in draw(SCALE)],
        "grads": draw(1.0),
        "exp_avgs": draw(0.1),
        "exp_avg_sqs": [value.square() for value in draw(0.1)],
        "emas": draw(SCALE),
    }
    t["twins"] = [value.detach().bfloat16() for value in t["params"]]
    t["step"] = torch.full((), UPDATES, dtype=torch.int64, device=device)
    t["rate"] = torch.full((), RATE, device=device)
    return {**t, "optimizer": _torch_optimizer(t, device)}


def _torch_optimizer(t: Inputs, device: str) -> torch.optim.AdamW:
    """torch's AdamW on the same tensors, about to make the same update."""
    optimizer = torch.optim.AdamW(t["params"], lr=RATE, weight_decay=0.01, fused=True, capturable=device == "cuda")
    for param, grad, mean, square in zip(t["params"], t["grads"], t["exp_avgs"], t["exp_avg_sqs"], strict=True):
        param.grad = grad
        step = torch.full((), UPDATES - 1.0, device=device)
        optimizer.state[param] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    return optimizer


def _gradient_norm(device: str) -> Iterator[Case]:
    def ours(backend: str, t: Inputs) -> Tensor:
        return ops.gradient_norm(t["grads"], backend=backend)

    def textbook(t: Inputs) -> Tensor:
        return nn.utils.get_total_norm(t["grads"])

    names = [*serving("gradient_norm", device), "reference"]
    contenders = {name: Contender((partial(ours, name),), as_it_is) for name in names}
    contenders["textbook"] = Contender((textbook,), as_it_is)
    yield Case("gradient_norm", "", FORWARD, _inputs, ("grads",), contenders, most_states=MOST_STATES)


def _adamw_ema(device: str) -> Iterator[Case]:
    names = [*serving("adamw_ema", device), "reference"]
    reads = ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas")
    for label, clip, all_reads in (("adamw_ema", False, reads), ("gradient_norm + adamw_ema", True, ("grads", *reads))):
        contenders = {name: Contender((partial(_our_update, clip, name),), as_it_is) for name in names}
        contenders["textbook"] = Contender((partial(_torch_update, clip),), as_it_is)
        yield Case(label, "", "update", _inputs, all_reads, contenders, in_place=True, most_states=MOST_STATES)


def _our_update(clip: bool, backend: str, t: Inputs) -> tuple[Tensor, ...]:
    clipping: dict[str, Any] = {}
    if clip:
        clipping = {"grad_norm": ops.gradient_norm(t["grads"], backend=backend), "max_norm": MAX_NORM}
    ops.adamw_ema(
        *(t[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")),
        t["step"],
        lr=t["rate"],
        emas=t["emas"],
        ema_decay=DECAY,
        twins=t["twins"],
        backend=backend,
        **clipping,
    )
    return _state(t)


def _torch_update(clip: bool, t: Inputs) -> tuple[Tensor, ...]:
    if clip:
        nn.utils.clip_grad_norm_(t["params"], MAX_NORM)
    t["optimizer"].step()
    torch._foreach_lerp_(t["emas"], t["params"], (1 - DECAY) / (1 - math.pow(DECAY, UPDATES)))
    torch._foreach_copy_(t["twins"], t["params"])
    return _state(t)


def _state(t: Inputs) -> tuple[Tensor, ...]:
    return tuple(tensor for name in ("params", "exp_avgs", "exp_avg_sqs", "emas", "twins") for tensor in t[name])
