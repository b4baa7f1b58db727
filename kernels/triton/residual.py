"""The weighted residual of both losses on the device, r = s (own(pred) - target): the Triton twin of ops/residual.py.

Its coefficients fill consecutive rows of a table: s, those of the heads in the network's own quantity if there are two
(a single head is that quantity), and those that turn the derivative by r into the gradient of each head.

A program leaves the sum of its tile in a slot of its own, and one program a sample adds up the slots in a fixed order,
so a loss is the same bits every time; a sample of one tile is done at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.loss_options import LossOptions
from progdistill.ops.names import WEIGHTINGS, heads
from progdistill.ops.rotation import domain
from progdistill.ops.triton_kernels.arithmetic import divide, square_root
from progdistill.ops.triton_kernels.elements import head_offsets, load_head, tiles
from progdistill.ops.triton_kernels.rotation import squared_factor, store_heads

_LARGEST_TILE = 4096
_LARGEST_SUM = 1024


def rows_of_weights(options: LossOptions) -> int:
    """Rows that the coefficients of the residual fill."""
    return 1 + (4 if heads(options.prediction_type) == 2 else 1)


def weight_arguments(options: LossOptions, elements: int) -> dict:
    """What `store_weights` wants of the options."""
    factor = 2.0 if options.loss_type == "l2" else 1.0
    return {
        "weighting": WEIGHTINGS.index(options.weighting),
        "gamma": options.min_snr_gamma,
        "grad_scale": factor * options.grad_scale / max(elements, 1),
        "OWN": domain(options.prediction_type),
        "OWN_HEADS": heads(options.prediction_type),
    }


class LossLaunch:
    """How the tiles of a batch become losses: grid, warps, and where the sums of tiles go on their way."""

    def __init__(self, loss: Tensor, z: Tensor, options: LossOptions):
        self.loss, self.elements = loss, z[0].numel()
        tile, self.chunks, self.warps = tiles(self.elements, _LARGEST_TILE)
        self.grid = (len(z) * self.chunks,)
        self.sums = loss if self.chunks == 1 else loss.new_empty(len(z), self.chunks)
        self.constants = {
            "OWN_HEADS": heads(options.prediction_type),
            "LOSS_TYPE": options.loss_type,
            "GRADIENT": options.need_grad,
            "WHOLE": self.chunks == 1,
            "TILE": tile,
        }

    def finish(self) -> None:
        """Makes means of the sums of tiles, if that is not done yet."""
        if self.chunks > 1:
            block = min(triton.next_power_of_2(self.chunks), _LARGEST_SUM)
            _means[(len(self.loss),)](self.loss, self.sums, self.elements, CHUNKS=self.chunks, BLOCK=block, num_warps=1)


@triton.jit
def store_weights(
    row,
    samples,
    inside,
    phi,
    weighting,
    gamma,
    grad_scale,
    OWN: tl.constexpr,
    OWN_HEADS: tl.constexpr,
):
    """Writes the coefficients of the residual for a block of samples."""
    sin, cos = tl.sin(phi), tl.cos(phi)
    scale = tl.sqrt(squared_factor(weighting, OWN, phi, tl.full((), gamma, tl.float64)))
    tl.store(row, scale, mask=inside)
    row += samples
    if OWN_HEADS == 2:
        store_heads(row, samples, inside, tl.zeros_like(phi) + 1.0, sin, cos, OWN_HEADS)
        row += OWN_HEADS * samples
    store_heads(row, samples, inside, scale * tl.full((), grad_scale, tl.float64), sin, cos, OWN_HEADS)


@triton.jit
def weigh(
    sums,
    grad,
    pred,
    target,
    row,
    samples,
    sample,
    e,
    inside,
    elements,
    huber_c,
    OWN_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOSS_TYPE: tl.constexpr,
    GRADIENT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Writes a tile's loss and gradient, given its target and the first row of the residual's coefficients."""
    scale = tl.load(row)
    row += samples
    own = load_head(pred, sample, e, inside, elements, target.dtype, 0, OWN_HEADS, CHANNELS)
    if OWN_HEADS == 2:
        second = load_head(pred, sample, e, inside, elements, target.dtype, 1, OWN_HEADS, CHANNELS)
        own = tl.fma(second, tl.load(row + samples), tl.load(row) * own)
        row += 2 * samples
    value, derivative = _penalty(scale * (own - target), huber_c, LOSS_TYPE)
    total = tl.sum(tl.where(inside, value, 0.0), axis=0)
    if WHOLE:
        total = (total.to(tl.float64) / elements).to(target.dtype)
    tl.store(sums + tl.program_id(0), total)
    if GRADIENT:
        for head in tl.static_range(OWN_HEADS):
            offsets = head_offsets(sample, e, elements, head, OWN_HEADS, CHANNELS)
            slope = (tl.load(row + head * samples) * derivative).to(grad.dtype.element_ty, fp_downcast_rounding="rtne")
            tl.store(grad + offsets, slope, mask=inside)


@triton.jit
def _penalty(r, huber_c, LOSS_TYPE: tl.constexpr):
    # (f(r), f'(r) but for the factor that the gradient's coefficients hold).
    if LOSS_TYPE == "l2":
        return r * r, r
    elif LOSS_TYPE == "l1":
        one = tl.zeros_like(r) + 1.0
        return tl.abs(r), tl.where(r > 0.0, one, tl.where(r < 0.0, -one, r))  # 0 at 0, NaN stays NaN
    else:
        c = tl.full((), huber_c, tl.float64).to(r.dtype)
        root = square_root(tl.fma(r, r, tl.zeros_like(r) + c * c))
        return divide(r * r, root + c), divide(r, root)  # root - c without its cancellation


@triton.jit(do_not_specialize=["elements"])
def _means(loss, sums, elements, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, CHUNKS, BLOCK):
        chunk = first + tl.arange(0, BLOCK)
        total += tl.load(sums + sample * CHUNKS + chunk, mask=chunk < CHUNKS, other=0.0).to(tl.float64)
    tl.store(loss + sample, tl.sum(total, axis=0) / elements)
