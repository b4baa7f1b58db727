"""Group normalisation with all that a residual block puts before and after it, in one operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from progdistill.ops import group_norm_kernels as kernels
from progdistill.ops.backends import choose, declare
from progdistill.ops.group_norm_checks import check_norm
from progdistill.ops.images import channels_last, is_left_to_reference, row
from progdistill.ops.layout import dense, memory_format
from progdistill.ops.registration import register


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    scale_shift: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = True,
    return_sources: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]:
    """y = silu((1 + scale) norm(cat(u, skip)) + shift_after) with u = x + residual + shift; Wu & He 2018.

    Whatever is left out counts as 0. With a `residual`, u is a result too: the sum that a residual block ends with is
    formed on the way to the norm that follows it. It is then rounded to the dtype of x before it is normalised.

    What is normalised may be needed elsewhere as well, by a shortcut, a residual sum or a skip connection. Taken from
    the results (`return_sources`) instead of from the arguments, it costs no pass of its own: u is formed on the way,
    and the gradients that reach u and skip from elsewhere are added on the way back. (Where torch.compile or export
    watches the call, or nothing compiled serves, it is autograd that adds the gradients.)

    The compiled kernels work in channels_last order. An x in another order is brought there and the results back: twice
    as many passes over memory.

    Args:
        x: (B, C, H, W), float32, float64 or bfloat16. C + C' channels are normalised in all.
        weight, bias: (C + C',), of the norm; float32, or the dtype of x.
        groups: number of groups, a divisor of C + C'. A group may lie partly in x and partly in skip.
        eps: positive, added to the variance, which is that of the group (not Bessel's).
        skip: (B, C', H, W), further channels, in the dtype of x.
        shift: (B, C), (1, C) or (C,), for the channels of x alone: the preceding convolution's bias and the time's
            projection. float32, or the dtype of x.
        scale_shift: (B, 2 (C + C')), the scales first, or (1, ...): adaptive group normalisation (Dhariwal & Nichol
            2021). float32, or the dtype of x.
        residual: (B, C, H, W), in the dtype of x.
        silu: no: without the activation.
        return_sources: also return what was normalised.
        backend: force "reference", "cuda" or "triton" (float32 and bfloat16 only); default: the best available.

    Returns:
        y (B, C + C', H, W); with a residual (y, u); with return_sources (y, u, skip). y and u have the dtype and memory
        format of x. With return_sources u is rounded to that dtype, and normalised as rounded, also where only a shift
        was added; it is x itself if nothing was. skip is None if none was given. Both may lie where x and skip lie: to
        change them in place changes those. Arithmetic is float32 (float64 for a float64 x). Differentiable in all
        tensors; once, but for the reference.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, eps or number of groups, with what is allowed.
    """
    check_norm(x, weight, bias, groups, eps, skip, shift, scale_shift, residual)
    if is_left_to_reference("group_norm_silu", x.device.type, x.dtype, backend):
        given = {"skip": skip, "shift": shift, "scale_shift": scale_shift, "residual": residual}
        options = {"silu": silu, "return_sources": return_sources}
        return group_norm_silu_reference(x, weight, bias, groups, eps, **given, **options)
    format = memory_format(x)
    y, u, _, _, *handed_on = _group_norm_silu(
        *(channels_last(image) for image in (x, skip, residual)),
        *(shift, weight, bias, scale_shift, int(groups), float(eps), silu, return_sources, backend),
    )
    y = dense(y, format)
    if _forms_sum(residual, shift, return_sources):
        u = dense(u, format)
    if not return_sources:
        return y if residual is None else (y, u)
    own, skip = (_as_given(*pair) for pair in zip(handed_on, (x, skip), strict=True))
    return y, u if own is None else own, skip


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    scale_shift: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = True,
    return_sources: bool = False,
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]:
    """The formula in plain PyTorch, differentiable by autograd."""
    format = memory_format(x)
    computing = torch.promote_types(x.dtype, torch.float32)
    u = x.to(computing)
    if residual is not None:
        u = u + residual
    if shift is not None:
        u = u + shift.to(computing).unsqueeze(-1).unsqueeze(-1)
    sum = x
    if _forms_sum(residual, shift, return_sources):
        sum = dense(u.to(x.dtype), format)
        u = sum.to(computing)
    if skip is not None:
        u = torch.cat((u, skip.to(computing)), dim=1)
    weight, bias = weight.to(computing), bias.to(computing)
    # Not F.group_norm, which refuses a single image whose groups hold one number each.
    if u.requires_grad or not torch.is_grad_enabled():
        y = torch.group_norm(u, groups, weight, bias, eps)
    else:  # asked for the gradient of weight and bias alone, torch 2.13 crashes in channels_last order on the CPU
        y = torch.addcmul(bias[:, None, None], torch.group_norm(u, groups, eps=eps), weight[:, None, None])
    if scale_shift is not None:
        scale, shift_after = scale_shift.to(computing)[..., None, None].chunk(2, dim=1)
        y = torch.addcmul(shift_after, y, scale + 1)
    y = dense((F.silu(y) if silu else y).to(x.dtype), format)
    if return_sources:
        return y, sum, skip
    return y if residual is None else (y, sum)


def _forms_sum(residual: Tensor | None, shift: Tensor | None, return_sources: bool) -> bool:
    """Whether u is a tensor of its own."""
    return residual is not None or (return_sources and shift is not None)


def _as_given(handed_on: Tensor | None, given: Tensor | None) -> Tensor | None:
    """An image that was handed on; what was given if that had to be copied into another order."""
    copied = given is not None and not given.is_contiguous(memory_format=torch.channels_last)
    return given if copied and handed_on is not None else handed_on


declare(
    "group_norm_silu",
    {"reference": group_norm_silu_reference, "cuda": kernels.forward_native, "triton": kernels.forward_triton},
)
_BACKWARD = {kernels.forward_native: kernels.backward_native, kernels.forward_triton: kernels.backward_triton}


def _implementation(
    x: Tensor,
    skip: Tensor | None,
    residual: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    return_sources: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, u, mean, rstd = _fake(
        x, skip, residual, shift, weight, bias, scale_shift, groups, eps, silu, return_sources, backend
    )
    images = (channels_last(image) for image in (x, skip, residual))
    values = (row(shift), weight.contiguous(), bias.contiguous(), row(scale_shift))
    forward = choose("group_norm_silu", x.device.type, backend)
    sum = u if _forms_sum(residual, shift, return_sources) else None
    forward(y, sum, mean, rstd, *images, *values, groups, eps, silu)
    return y, u, mean, rstd


def _fake(x, skip, residual, shift, weight, bias, scale_shift, groups, eps, silu, return_sources, backend):
    y = _image(x, len(weight))
    u = _image(x, x.shape[1]) if _forms_sum(residual, shift, return_sources) else x.new_empty(0)
    mean, rstd = (x.new_empty((len(x), groups), dtype=torch.float32) for _ in range(2))
    return y, u, mean, rstd


def _image(like: Tensor, channels: int) -> Tensor:
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _hand_on(x, skip, residual, shift, weight, bias, scale_shift, groups, eps, silu, return_sources, backend):
    """Of the arguments: x, unless u is a tensor of its own, and skip."""
    if not return_sources:
        return ()
    return None if _forms_sum(residual, shift, return_sources) else x, skip


def _setup_context(ctx, inputs, output) -> None:
    x, skip, residual, shift, weight, bias, scale_shift, ctx.groups, _, ctx.silu, return_sources, ctx.backend = inputs
    _, u, mean, rstd, *handed_on = output
    ctx.has_residual, ctx.has_sum = residual is not None, _forms_sum(residual, shift, return_sources)
    wanted = ctx.needs_input_grad
    constant = [image for image, needed in zip(handed_on, wanted, strict=False) if image is not None and not needed]
    if not ctx.has_sum or not (wanted[0] or wanted[2] or wanted[3]):
        constant.append(u)
    ctx.mark_non_differentiable(mean, rstd, *constant)
    ctx.set_materialize_grads(False)
    ctx.shift_like = None if shift is None else (shift.shape, shift.dtype)
    own = (u, skip, None) if ctx.has_sum else (x, skip, shift)
    ctx.save_for_backward(*own, weight, bias, scale_shift, mean, rstd)


def _backward(
    ctx,
    dy: Tensor | None,
    dsum: Tensor | None,
    dmean: None,
    drstd: None,
    dx_bypass: Tensor | None = None,
    dskip_bypass: Tensor | None = None,
) -> tuple:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError('group_norm_silu is differentiable once; backend="reference" as often as you like')
    u, skip, shift, weight, bias, scale_shift, mean, rstd = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(_image(u, len(weight)))
    wants_dshift = ctx.shift_like is not None and ctx.needs_input_grad[3]
    du, dskip, dweight, dbias, dshift, dscale_shift = _group_norm_silu_backward(
        dy,
        dsum if ctx.has_sum else dx_bypass,
        dskip_bypass,
        *(u, skip, shift, weight, bias, scale_shift, mean, rstd),
        *(ctx.groups, ctx.silu, wants_dshift, ctx.backend),
    )
    return (
        du,
        None if skip is None else dskip,
        du if ctx.has_residual else None,
        _summed_to(dshift, *ctx.shift_like) if wants_dshift else None,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        None if scale_shift is None else _summed_to(dscale_shift, scale_shift.shape, scale_shift.dtype),
        *(None,) * 5,
    )


def _summed_to(gradient: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of each sample's values as that of the values given, which may be those of all samples."""
    if gradient.shape != shape:
        gradient = gradient.sum(dim=0).reshape(shape)
    return gradient.to(dtype)


_group_norm_silu = register(
    "group_norm_silu(Tensor x, Tensor? skip, Tensor? residual, Tensor? shift, Tensor weight, Tensor bias,"
    " Tensor? scale_shift, int groups, float eps, bool silu, bool return_sources, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
    hands_on=_hand_on,
)


def _backward_implementation(
    dy: Tensor,
    du_bypass: Tensor | None,
    dskip_bypass: Tensor | None,
    u: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    silu: bool,
    wants_dshift: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = _backward_fake(
        *(dy, du_bypass, dskip_bypass, u, skip, shift, weight, bias, scale_shift, mean, rstd),
        *(groups, silu, wants_dshift, backend),
    )
    du, dskip, dweight, dbias, dshift, dscale_shift = results
    _BACKWARD[choose("group_norm_silu", u.device.type, backend)](
        *(du, None if skip is None else dskip, dweight, dbias, dshift if wants_dshift else None),
        None if scale_shift is None else dscale_shift,
        *(channels_last(image) for image in (dy, du_bypass, dskip_bypass, u, skip)),
        *(row(shift), weight.contiguous(), bias.contiguous(), row(scale_shift), mean, rstd, groups, silu),
    )
    return results


def _backward_fake(
    dy,
    du_bypass,
    dskip_bypass,
    u,
    skip,
    shift,
    weight,
    bias,
    scale_shift,
    mean,
    rstd,
    groups,
    silu,
    wants_dshift,
    backend,
):
    du = _image(u, u.shape[1])
    dskip = u.new_empty(0) if skip is None else _image(skip, skip.shape[1])
    normalised = len(weight)
    dweight, dbias = mean.new_empty(normalised), mean.new_empty(normalised)
    dshift = mean.new_empty((len(u), u.shape[1]) if wants_dshift else 0)
    dscale_shift = mean.new_empty(0 if scale_shift is None else (len(u), 2 * normalised))
    return du, dskip, dweight, dbias, dshift, dscale_shift


_group_norm_silu_backward = register(
    "group_norm_silu_backward(Tensor dy, Tensor? du_bypass, Tensor? dskip_bypass, Tensor u, Tensor? skip,"
    " Tensor? shift, Tensor weight, Tensor bias, Tensor? scale_shift, Tensor mean, Tensor rstd, int groups, bool silu,"
    " bool wants_dshift, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_implementation,
    _backward_fake,
)
