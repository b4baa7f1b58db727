"""Muon for the matrices of a network, AdamW for all else, with clipping, average and twins as `AdamWEma` has them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.training.adamw_ema import AdamWEma, Update

# Of the quintic that Jordan et al. 2024 iterate: it brings singular values from (0, 1] to about 0.7 ... 1.2 in 5 steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS = 0.2


class MuonEma(AdamWEma):
    """`AdamWEma` whose groups with `muon=True` are updated by Muon (Jordan et al. 2024).

    A weight (C', C, k, k) counts as a matrix (C', C k k). With its momentum m, decay mu, at every update

        m <- m + (1 - mu) (g - m)
        O  = U V^T of the Nesterov momentum g + mu (m - g) = U S V^T, its singular values all brought near 1
        p <- p - lr weight_decay p
        p <- p - lr 0.2 sqrt(max(C', C k k)) O

    so that a step's root mean square is about the 0.2 lr of AdamW's steps, and one learning rate serves both
    (Liu et al. 2025, equation 4). O is found by five Newton-Schulz iterations in the parameter's dtype. Only the
    direction of the gradients counts, so clipping does not reach these groups; their norm is part of `grad_norm`.

    Args:
        params: groups as torch takes them; see `muon_groups`.
        momentum: mu.
        options: those of `AdamWEma`.
    """

    def __init__(self, params: Any, *, momentum: float = 0.95, **options: Any) -> None:
        super().__init__(params, **options)
        self.momentum = momentum

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "momentum": self.momentum}

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",) if group.get("muon") else super()._moments(group)

    def _run(self, group: dict[str, Any], updates: list[Update]) -> None:
        if not group.get("muon"):
            super()._run(group, updates)
            return
        self._step_matrices(group, updates)
        self._average_and_copy(updates)

    def _step_matrices(self, group: dict[str, Any], updates: list[Update]) -> None:
        """Momentum, direction and weights."""
        parameters = [update.parameter for update in updates]
        grads = [update.grad.to(update.parameter.dtype) for update in updates]
        momenta = [update.state["exp_avg"] for update in updates]
        torch._foreach_lerp_(momenta, grads, 1 - self.momentum)
        nesterov = torch._foreach_lerp(grads, momenta, self.momentum)
        steps = orthogonalised([matrix.flatten(1) for matrix in nesterov])
        torch._foreach_mul_(steps, [_RMS * math.sqrt(max(step.shape)) for step in steps])
        rate = group["lr"] * torch.ones((), dtype=torch.float64, device=steps[0].device)
        torch._foreach_mul_(steps, rate.to(steps[0].dtype))
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, (1 - rate * group["weight_decay"]).to(steps[0].dtype))
        torch._foreach_sub_(parameters, [step.reshape(own.shape) for step, own in zip(steps, parameters, strict=True)])

    def _average_and_copy(self, updates: list[Update]) -> None:
        if self.ema_decay is not None:
            decay = torch.ones_like(updates[0].state["step"], dtype=torch.float64) * self.ema_decay
            weight = (1 - decay) / (1 - decay ** updates[0].state["step"])
            parameters, averages = [u.parameter for u in updates], [u.average for u in updates]
            changes = torch._foreach_sub(parameters, averages)
            torch._foreach_mul_(changes, weight.to(changes[0].dtype))
            torch._foreach_add_(averages, changes)
        if updates[0].twin is not None:
            torch._foreach_copy_([update.twin for update in updates], [update.parameter for update in updates])


def orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """U V^T of matrices (M, N) = U S V^T, about: singular values within 0.7 ... 1.2 instead of 1.

    Those below a thousandth of a matrix's Frobenius norm stay smaller. Five iterations of Jordan et al. 2024's odd
    quintic, X <- P X with P = a + b A + c A A and A = X X^T. P and A commute, so A <- P A P, and X itself is multiplied
    once, by the product of all P: less work by far where N is much larger than M. And A has the shorter side only, so
    that matrices of different lengths iterate together. Nothing waits for the device.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    norms = torch._foreach_norm(wide)
    torch._foreach_clamp_min_(norms, 1e-30)
    wide = torch._foreach_div(wide, norms)
    by_side: dict[int, list[int]] = {}
    for index, x in enumerate(wide):
        by_side.setdefault(x.shape[0], []).append(index)
    results = list(matrices)
    for indices in by_side.values():
        products = _product_of_factors(torch.stack([wide[index] @ wide[index].mT for index in indices]))
        for index, product in zip(indices, products.unbind(), strict=True):
            found = product @ wide[index]
            results[index] = found if found.shape == matrices[index].shape else found.mT
    return results


def _product_of_factors(gram: Tensor) -> Tensor:
    """The product of the five P, of A = X X^T (B, M, M)."""
    a, b, c = _QUINTIC
    constant = a * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    product = None
    for iteration in range(_ITERATIONS):
        factor = torch.baddbmm(torch.add(constant, gram, alpha=b), gram, gram, alpha=c)
        product = factor if product is None else factor @ product
        if iteration + 1 < _ITERATIONS:
            gram = factor @ gram @ factor
    return product


def muon_groups(network: nn.Module) -> list[dict[str, Any]]:
    """A group of the matrices that Muon updates and one of everything else, as (name, parameter) pairs; none is empty.

    Matrices are the weights of convolutions and linear layers but the first and the last of the network, whose rows or
    columns are pixels (Jordan et al. 2024 leave these to AdamW, like embeddings, biases and norms).
    """
    layers = [
        module for module in network.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    inner = {module.weight for module in layers[1:-1]}
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    matrices = [pair for pair in trained if pair[1] in inner]
    others = [pair for pair in trained if pair[1] not in inner]
    groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
    return [group for group in groups if group["params"]]
