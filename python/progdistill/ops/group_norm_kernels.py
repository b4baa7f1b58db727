"""The compiled kernels of group_norm_silu.

Their calls are the same for every compiled backend. All tensors are of one device and dense, images in channels_last
order; the first ones are results, allocated by the caller; what is None is left out. `shift` is (B, C) or (1, C),
`scale_shift` (B, 2 (C + C')) or (1, ...); they, weight and bias are float32 or as x, each for itself. The batch may be
empty.

forward(y, sum, mean, rstd, x, skip, residual, shift, weight, bias, scale_shift, groups, eps, silu)
    sum (B, C, H, W): x + residual + shift as x, and what is normalised then; with a residual it must be given. mean,
    rstd (B, groups) float32.

backward(du, dskip, dweight, dbias, dshift, dscale_shift,
         dy, du_bypass, dskip_bypass, u, skip, shift, weight, bias, scale_shift, mean, rstd, groups, silu)
    u: the sum if there was one (then shift is None, being part of it), else x. du_bypass and dskip_bypass are the
    gradients that reach u and skip past the norm: they are part of du and dskip. du (B, C, H, W) is the gradient of x
    and residual alike; dshift (B, C) is the sum of it over the pixels before rounding, and may be wanted without a
    shift. dweight, dbias (C + C',), dshift and dscale_shift (B, 2 (C + C')) are float32.
"""

from __future__ import annotations

from torch import Tensor

from progdistill.ops import native

# Shared memory that a block of the CUDA kernels may fill to read images once, where whole groups fit; 0: they are read
# twice. 99 KB are what every GPU from sm_80 on gives a block, and leave room for two of them on an H100 or H200.
TILE_BYTES = 99 * 1024


def forward_native(y, sum, mean, rstd, x, skip, *values) -> None:
    workspace = _workspace(x, skip, mean, False)
    tensors = (y, sum, mean, rstd, x, skip, *values[:-3])
    native._C.group_norm_silu(*map(native.view, tensors), *values[-3:], TILE_BYTES, workspace, native.run(x))


def backward_native(*arguments) -> None:
    *tensors, groups, silu = arguments
    u, skip, mean = tensors[9], tensors[10], tensors[15]
    workspace = _workspace(u, skip, mean, True)
    native._C.group_norm_silu_backward(*map(native.view, tensors), groups, silu, TILE_BYTES, workspace, native.run(u))


def _workspace(x: Tensor, skip: Tensor | None, mean: Tensor, backward: bool):
    run, groups = native.run(x), mean.shape[1]
    count = native._C.group_norm_workspace(native.view(x), native.view(skip), groups, backward, TILE_BYTES, run)
    return native.view(mean.new_empty(count))


def forward_triton(*arguments) -> None:
    from progdistill.ops.triton_kernels import group_norm_silu

    group_norm_silu.forward(*arguments)


def backward_triton(*arguments) -> None:
    from progdistill.ops.triton_kernels import group_norm_silu

    group_norm_silu.backward(*arguments)
