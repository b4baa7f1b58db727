"""One optimizer update in one pass over the state: clipped AdamW, the average of the weights, their bfloat16 twins.

AdamW is Loshchilov & Hutter 2019, algorithm 2, in the order of `torch.optim.AdamW`; t is the number of this update:

    g <- min(1, max_norm / (norm + 1e-6)) g                 as clip_grad_norm_
    p <- p - lr weight_decay p
    m <- m + (1 - beta1) (g - m),  v <- v + (1 - beta2) (g^2 - v)
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    ema <- ema + (1 - d) / (1 - d^t) (p - ema)              the bias-corrected average, ema = p at t = 1
    twin <- bfloat16(p)

Factors are formed in float64, elements updated in the parameters' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.ops import native
from progdistill.ops.backends import choose, declare
from progdistill.ops.layout import is_dense, laid_out_as, lie_alike
from progdistill.ops.registration import register


class AdamWOptions(NamedTuple):
    """What the parameters of a call share. Of number and tensor the tensor counts, unless it is None."""

    step: int
    step_tensor: Tensor | None
    lr: float
    lr_tensor: Tensor | None
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_norm: Tensor | None
    max_norm: float | None
    ema_decay: float
    ema_decay_tensor: Tensor | None


# The same in an operator's schema.
_OPTIONS_SCHEMA = (
    "int step, Tensor? step_tensor, float lr, Tensor? lr_tensor, float beta1, float beta2, float eps, "
    "float weight_decay, Tensor? grad_norm, float? max_norm, float ema_decay, Tensor? ema_decay_tensor"
)


def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int | Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    grad_norm: Tensor | None = None,
    max_norm: float | None = None,
    emas: Sequence[Tensor] | None = None,
    ema_decay: float | Tensor | None = None,
    twins: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> None:
    """Updates parameters, moments, averages and twins in place.

    `step`, `lr` and `ema_decay` may be tensors of one element on the parameters' device. Kernels read them when they
    run: nothing waits for the device, and a replayed CUDA graph sees what was written since its capture (numbers stay
    as they were captured). The step is not counted up here: parameters of several calls share it, so the caller does
    `step.add_(1)` before them, which a graph captures like everything else.

    Args:
        params: float32 (or float64) tensors of one dtype, dense in any order (channels_last, say); gradients are not
            recorded.
        grads: as the parameters, or bfloat16 beside float32. One that lies differently in memory is copied first.
        exp_avgs, exp_avg_sqs: the moments, which lie in memory as the parameters do; zeros before the first update.
        step: the number of this update, from 1; a tensor is int64.
        lr: learning rate, >= 0; a tensor is float32 or float64.
        betas, eps, weight_decay: as in `torch.optim.AdamW`.
        grad_norm, max_norm: both, to clip: the norm of all gradients (`gradient_norm`) and its bound. As in
            `clip_grad_norm_`, a norm of NaN makes all weights NaN, an infinite one those with infinite gradients. The
            gradients stay as they are.
        emas, ema_decay: both, to average the weights: tensors as the parameters, and d in [0, 1), float32 or float64.
        twins: bfloat16 tensors that receive the new weights, rounded to nearest even.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    No two tensors may share memory. Tensors' values are checked on the CPU only.

    Raises:
        TypeError, ValueError: wrong count, dtype, shape, memory order, device or value, with what is allowed.
    """
    params, grads, exp_avgs, exp_avg_sqs = list(params), list(grads), list(exp_avgs), list(exp_avg_sqs)
    _check_pairs(grad_norm, max_norm, emas, ema_decay)
    emas, twins = list(emas or ()), list(twins or ())
    if not params:
        _check_lengths(params, _named(grads, exp_avgs, exp_avg_sqs, emas, twins))
        return
    device = params[0].device
    options = AdamWOptions(
        *_number_or_tensor("step", step, (torch.int64,), device),
        *_number_or_tensor("lr", lr, (torch.float32, torch.float64), device),
        *betas,
        eps,
        weight_decay,
        _number_or_tensor("grad_norm", grad_norm, (torch.float32, torch.float64), device)[1],
        max_norm,
        *_number_or_tensor("ema_decay", ema_decay or 0.0, (torch.float32, torch.float64), device),
    )
    _check_numbers(options)
    with torch.no_grad():
        _adamw_ema(params, grads, exp_avgs, exp_avg_sqs, emas, twins, *options, backend)


def adamw_ema_reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    twins: list[Tensor],
    options: AdamWOptions,
) -> None:
    """The formula in plain PyTorch, a tensor of each parameter at a time."""
    dtype, device = params[0].dtype, params[0].device

    def double(number: float, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return torch.full((), number, dtype=torch.float64, device=device)  # as_tensor would copy, and wait for it
        return tensor.double().reshape(())

    step, lr = double(options.step, options.step_tensor), double(options.lr, options.lr_tensor)
    grads = [grad.to(dtype) for grad in grads]
    if options.grad_norm is not None:
        clip = torch.clamp(options.max_norm / (double(0, options.grad_norm) + 1e-6), max=1.0)
        grads = torch._foreach_mul(grads, clip.to(dtype))
    torch._foreach_mul_(params, (1 - lr * options.weight_decay).to(dtype))
    torch._foreach_lerp_(exp_avgs, grads, 1 - options.beta1)
    torch._foreach_mul_(exp_avg_sqs, options.beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - options.beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, (1 - options.beta2**step).sqrt().to(dtype))
    torch._foreach_add_(denominators, options.eps)
    steps = torch._foreach_div(exp_avgs, denominators)
    torch._foreach_mul_(steps, (lr / (1 - options.beta1**step)).to(dtype))
    torch._foreach_sub_(params, steps)
    if emas:
        decay = double(options.ema_decay, options.ema_decay_tensor)
        weight = ((1 - decay) / (1 - decay**step)).to(dtype)
        for ema, param in zip(emas, params, strict=True):
            ema.lerp_(param, weight)
    if twins:
        torch._foreach_copy_(twins, params)


def _adamw_ema_native(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    twins: list[Tensor],
    options: AdamWOptions,
) -> None:
    either = lambda number, tensor: number if tensor is None else native.view(tensor)  # noqa: E731
    native._C.adamw_ema(
        *([native.view(tensor) for tensor in row] for row in (params, grads, exp_avgs, exp_avg_sqs, emas, twins)),
        either(options.step, options.step_tensor),
        either(options.lr, options.lr_tensor),
        (options.beta1, options.beta2, options.eps, options.weight_decay),
        either(0.0, options.grad_norm),
        options.max_norm,
        either(options.ema_decay, options.ema_decay_tensor),
        native.run(params[0]),
    )
    # Autograd cannot see what the extension writes.
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *emas, *twins])


def _adamw_ema_triton(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    twins: list[Tensor],
    options: AdamWOptions,
) -> None:
    from progdistill.ops.triton_kernels.adamw_ema import adamw_ema

    adamw_ema(params, grads, exp_avgs, exp_avg_sqs, emas, twins, options)
    # Autograd cannot see what the kernels write.
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *emas, *twins])


declare(
    "adamw_ema",
    {
        "reference": adamw_ema_reference,
        "cpu": _adamw_ema_native,
        "cuda": _adamw_ema_native,
        "triton": _adamw_ema_triton,
    },
)


def _check_pairs(grad_norm, max_norm, emas, ema_decay) -> None:
    if (grad_norm is None) != (max_norm is None):
        raise ValueError(
            f"max_norm is {max_norm}, grad_norm {'missing' if grad_norm is None else 'given'}; clipping needs both: "
            "grad_norm=ops.gradient_norm(grads)"
        )
    if (emas is None) != (ema_decay is None):
        raise ValueError(
            f"ema_decay is {ema_decay}, emas {'missing' if emas is None else 'given'}; averaging needs both"
        )


def _named(grads, exp_avgs, exp_avg_sqs, emas, twins) -> dict[str, list[Tensor]]:
    rows = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    return rows | {name: row for name, row in (("emas", emas), ("twins", twins)) if row}


def _check_lengths(params: list[Tensor], rows: dict[str, list[Tensor]]) -> None:
    for name, row in rows.items():
        if len(row) != len(params):
            raise ValueError(f"{name} holds {len(row)} tensors, params {len(params)}; one for each is needed")


def _check_tensors(params: list[Tensor], rows: dict[str, list[Tensor]]) -> None:
    """All that a call relies on, but for the memory order of gradients."""
    _check_lengths(params, rows)
    dtype, device = params[0].dtype, params[0].device
    allowed = dict.fromkeys(rows, (dtype,))
    if dtype == torch.float32:
        allowed |= {"grads": (torch.float32, torch.bfloat16), "twins": (torch.bfloat16,)}
    elif dtype != torch.float64 or "twins" in rows:
        raise TypeError(
            f"params[0] is {dtype}; parameters are float32 (masters: let bfloat16 weights be their twins), or float64 "
            "without twins"
        )
    for i, param in enumerate(params):
        if param.dtype != dtype or param.device != device:
            raise TypeError(
                f"params[{i}] is {param.dtype} on {param.device}, params[0] {dtype} on {device}; use a call for each"
            )
        if not is_dense(param):
            raise ValueError(f"params[{i}] has gaps in memory (strides {param.stride()}); pass dense parameters")
        for name, row in rows.items():
            _check_beside(f"{name}[{i}]", row[i], allowed[name], f"params[{i}]", param)
            if name != "grads" and not lie_alike(row[i], param):
                raise ValueError(
                    f"{name}[{i}] has strides {row[i].stride()}, params[{i}] {param.stride()}; make it with "
                    "torch.empty_like(param), which keeps the memory order"
                )


def _check_beside(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...], param_name: str, param: Tensor) -> None:
    if tensor.dtype not in allowed or tensor.layout != torch.strided:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise TypeError(
            f"{name} is {kind}; beside {param.dtype} parameters it must be {' or '.join(map(str, allowed))}, strided"
        )
    if tensor.shape != param.shape or tensor.device != param.device:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} on {tensor.device}, {param_name} has {tuple(param.shape)} on "
            f"{param.device}; they must agree"
        )


def _number_or_tensor(
    name: str, value: float | Tensor | None, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> tuple[float, Tensor | None]:
    if not isinstance(value, Tensor):
        return value, None
    if value.dtype not in dtypes or value.numel() != 1:
        raise TypeError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}; expected a number or one element of "
            f"{' or '.join(map(str, dtypes))}"
        )
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the parameters on {device}; move it there, or pass a number")
    return 0, value


def _check_numbers(options: AdamWOptions) -> None:
    for name in ("beta1", "beta2"):
        if not 0.0 <= getattr(options, name) < 1.0:
            raise ValueError(f"{name} is {getattr(options, name)}; betas lie in [0, 1)")
    for name in ("eps", "weight_decay", "max_norm"):
        value = getattr(options, name)
        if value is not None and not value >= 0.0:
            raise ValueError(f"{name} is {value}; use 0 or a positive number")


def _check_values(options: AdamWOptions) -> None:
    """Of numbers, and of tensors that lie on the CPU: elsewhere the host would have to wait for the device."""
    for name, low, high, what in (
        ("step", 1, None, "updates are counted from 1: count up before the call"),
        ("lr", 0.0, None, "use 0 or a positive number"),
        ("ema_decay", 0.0, 1.0, "use a number in [0, 1) such as 0.9999"),
    ):
        tensor = getattr(options, f"{name}_tensor")
        if tensor is not None and tensor.device.type != "cpu":
            continue
        value = getattr(options, name) if tensor is None else tensor.item()
        if not value >= low or (high is not None and not value < high):
            raise ValueError(f"{name} is {value}; {what}")


def _implementation(params, grads, exp_avgs, exp_avg_sqs, emas, twins, *flat) -> None:
    *values, backend = flat
    options = AdamWOptions(*values)
    _check_values(options)
    run = choose("adamw_ema", params[0].device.type, backend)
    if run is _adamw_ema_native and native.knows_devices():
        # The extension checks all tensors before it touches any, and faster; what it refuses is put in words here.
        try:
            return run(params, grads, exp_avgs, exp_avg_sqs, emas, twins, options)
        except Exception:
            _check_tensors(params, _named(grads, exp_avgs, exp_avg_sqs, emas, twins))
            if all(lie_alike(grad, param) for grad, param in zip(grads, params, strict=True)):
                raise
    else:
        _check_tensors(params, _named(grads, exp_avgs, exp_avg_sqs, emas, twins))
    grads = [laid_out_as(grad, param) for grad, param in zip(grads, params, strict=True)]
    run(params, grads, exp_avgs, exp_avg_sqs, emas, twins, options)


def _fake(*arguments) -> None:
    return None


_adamw_ema = register(
    "adamw_ema(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    f"Tensor(d!)[] emas, Tensor(e!)[] twins, {_OPTIONS_SCHEMA}, str? backend) -> ()",
    _implementation,
    _fake,
)
