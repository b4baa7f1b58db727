"""One optimizer update in one pass over the state: the twin of ops/adamw_ema.py and, to the bit, of include/adamw.h.

What all elements share is formed in float64 by one program and left in a small table, in the parameters' precision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels import tensor_table
from progdistill.ops.triton_kernels.arithmetic import divide, square_root
from progdistill.ops.triton_kernels.elements import on_device
from progdistill.ops.triton_kernels.tensor_table import CHUNK, TILE, address, in_vectors, place

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float64: tl.float64}
_FACTORS = 11


def adamw_ema(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    twins: list[Tensor],
    options,
) -> None:
    """Updates everything but the gradients in place; a parameter and all that belongs to it lie in memory alike.

    `options` are those of ops/adamw_ema.py.
    """
    groups = {}
    for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, emas or params, twins or params, strict=True):
        if tensors[0].numel() > 0:
            kind = tensors[1].dtype, tensor_table.vector(tensors)
            groups.setdefault(kind, []).append((tensors[0].numel(), *(tensor.data_ptr() for tensor in tensors)))
    like = params[0]
    with on_device(like):
        factors = like.new_empty(_FACTORS)
        _store_factors[(1,)](
            factors,
            options.step,
            options.step_tensor,
            options.lr,
            options.lr_tensor,
            options.beta1,
            options.beta2,
            options.eps,
            options.weight_decay,
            options.grad_norm,
            options.max_norm or 0.0,
            options.ema_decay,
            options.ema_decay_tensor,
            num_warps=1,
        )
        for (dtype, vector), members in groups.items():
            elements, *rows = zip(*members, strict=True)
            for table in tensor_table.tables(elements, rows, like.device):
                _adamw_ema[(table.chunks,)](
                    factors,
                    *table.arguments,
                    DTYPE=_TYPES[like.dtype],
                    GRAD=_TYPES[dtype],
                    EMA=bool(emas),
                    TWIN=bool(twins),
                    VECTOR=vector,
                    CHUNK=CHUNK,
                    TILE=TILE,
                    **table.constants,
                    enable_fp_fusion=False,
                )


@triton.jit(
    do_not_specialize=["step"],
    do_not_specialize_on_alignment=["step_tensor", "lr_tensor", "grad_norm", "ema_decay_tensor"],
)
def _store_factors(
    factors,
    step: tl.int64,
    step_tensor,
    lr: tl.float64,
    lr_tensor,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    grad_norm,
    max_norm: tl.float64,
    ema_decay: tl.float64,
    ema_decay_tensor,
):
    if step_tensor is not None:
        step = tl.load(step_tensor)
    lr = _number(lr, lr_tensor)
    beta1, beta2 = tl.full((), beta1, tl.float64), tl.full((), beta2, tl.float64)
    clip = tl.full((), 1.0, tl.float64)
    if grad_norm is not None:
        # As clip_grad_norm_: a norm that is not a number makes every gradient so, an infinite one leaves zeros.
        clip = max_norm / (tl.load(grad_norm).to(tl.float64) + 1e-6)
        clip = tl.where(clip > 1.0, 1.0, clip)
    decay = _number(ema_decay, ema_decay_tensor)
    _store(factors, clip)
    _store(factors + 1, lr * weight_decay)
    _store_lerp(factors + 2, 1.0 - beta1)
    _store_lerp(factors + 4, 1.0 - beta2)
    _store(factors + 6, 1.0 / tl.sqrt(1.0 - _power(beta2, step)))
    _store(factors + 7, tl.full((), eps, tl.float64))
    _store(factors + 8, lr / (1.0 - _power(beta1, step)))
    _store_lerp(factors + 9, (1.0 - decay) / (1.0 - _power(decay, step)))


@triton.jit
def _number(value, tensor):
    # In float64, wherever it is.
    if tensor is not None:
        return tl.load(tensor).to(tl.float64)
    else:
        return tl.full((), value, tl.float64)


@triton.jit
def _store(slot, value):
    tl.store(slot, value.to(slot.dtype.element_ty))


@triton.jit
def _store_lerp(slot, weight):
    # (factor, whether it counts from the end): weight 1 gives the end to the last bit.
    from_end = weight >= 0.5
    _store(slot, tl.where(from_end, weight - 1.0, weight))
    _store(slot + 1, from_end.to(tl.float64))


@triton.jit
def _power(base, exponent):
    # By squaring: the same bits on every processor.
    result = tl.full((), 1.0, tl.float64)
    while exponent > 0:
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


@triton.jit(do_not_specialize=["tensors"])
def _adamw_ema(
    factors,
    table,
    tensors,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    EMA: tl.constexpr,
    TWIN: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    TENSORS: tl.constexpr,
):
    tensor, chunk, left = place(table, tensors, TENSORS, CHUNK)
    begin = chunk.to(tl.int64) * CHUNK
    GRID: tl.constexpr = 16 if VECTOR > 1 else 1  # bytes; said here, as it would be forgotten in a function
    param = tl.multiple_of(address(table, tensors, tensor, 0, DTYPE) + begin, GRID)
    grad = tl.multiple_of(address(table, tensors, tensor, 1, GRAD) + begin, GRID)
    exp_avg = tl.multiple_of(address(table, tensors, tensor, 2, DTYPE) + begin, GRID)
    exp_avg_sq = tl.multiple_of(address(table, tensors, tensor, 3, DTYPE) + begin, GRID)
    ema = tl.multiple_of(address(table, tensors, tensor, 4, DTYPE) + begin, GRID)
    twin = tl.multiple_of(address(table, tensors, tensor, 5, tl.bfloat16) + begin, GRID)
    by = _load_factors(factors)
    whole = in_vectors(left, CHUNK, VECTOR)
    for start in range(0, whole, TILE):
        e = start + tl.arange(0, TILE)
        _update(param, grad, exp_avg, exp_avg_sq, ema, twin, e, e < whole, by, EMA, TWIN)
    if VECTOR > 1:
        e = whole + tl.arange(0, VECTOR)
        _update(param, grad, exp_avg, exp_avg_sq, ema, twin, e, (e < left) & (e < CHUNK), by, EMA, TWIN)


@triton.jit
def _load_factors(factors):
    # In the order of _store_factors.
    shared = tl.load(factors), tl.load(factors + 1)
    moments = tl.load(factors + 2), tl.load(factors + 3), tl.load(factors + 4), tl.load(factors + 5)
    step = tl.load(factors + 6), tl.load(factors + 7), tl.load(factors + 8)
    return shared + moments + step + (tl.load(factors + 9), tl.load(factors + 10))


@triton.jit
def _update(param, grad, exp_avg, exp_avg_sq, ema, twin, e, inside, by, EMA: tl.constexpr, TWIN: tl.constexpr):
    clip, decay, first, from_g, second, from_square, root_scale, eps, step_size, average, from_param = by
    p = tl.load(param + e, mask=inside, other=0.0)
    g = clip * tl.load(grad + e, mask=inside, other=0.0).to(p.dtype)
    m = tl.load(exp_avg + e, mask=inside, other=0.0)
    m = tl.fma(_as(first, p), g - m, tl.where(from_g != 0.0, g, m))
    tl.store(exp_avg + e, m, mask=inside)
    v = tl.load(exp_avg_sq + e, mask=inside, other=0.0)
    # From the difference to g^2: rounded factors of both ends that do not add up to 1 would shift what this tends to.
    v = tl.fma(_as(second, p), tl.fma(g, g, -v), tl.where(from_square != 0.0, g * g, v))
    tl.store(exp_avg_sq + e, v, mask=inside)
    denominator = tl.fma(square_root(v), _as(root_scale, p), _as(eps, p))
    p = tl.fma(_as(-step_size, p), divide(m, denominator), tl.fma(_as(-decay, p), p, p))
    tl.store(param + e, p, mask=inside)
    if TWIN:
        tl.store(twin + e, p.to(tl.float32).to(tl.bfloat16), mask=inside)
    if EMA:
        a = tl.load(ema + e, mask=inside, other=0.0)
        tl.store(ema + e, tl.fma(_as(average, p), p - a, tl.where(from_param != 0.0, p, a)), mask=inside)


@triton.jit
def _as(factor, like):
    return tl.broadcast_to(factor, like.shape)
