"""The optimizer as the recipes use it, its learning rate as a pure function of the update, and its state by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from progdistill.training.adamw_ema import AdamWEma
from progdistill.training.config import LoopConfig
from progdistill.training.muon_ema import MuonEma, muon_groups

_MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(config: LoopConfig, update: int, total: int) -> float:
    """The rate of update number `update` (from 0) of a round of `total`: warm-up, then as `lr_scheduler` says."""
    rate = config.learning_rate
    if update < config.lr_warmup_steps:
        return rate * (update + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "linear":
        return rate * (total - update) / max(1, total - config.lr_warmup_steps)
    if config.lr_scheduler == "piecewise_constant" and 2 * update >= total:
        return rate / 10
    return rate


def make_optimizer(
    network: nn.Module, config: LoopConfig, device: torch.device, twins: Mapping[nn.Parameter, Tensor]
) -> AdamWEma:
    """AdamW with decoupled weight decay, clipping, and the average of the weights; or Muon for the inner matrices.

    Twins are as in `AdamWEma`. The learning rate is a tensor on the device, for a CUDA graph to read.
    """
    options = {
        "lr": torch.tensor(config.learning_rate, dtype=torch.float64, device=device),
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.adam_weight_decay,
        "max_grad_norm": config.max_grad_norm or math.inf,
        "ema_decay": config.ema_decay,
        "twins": twins,
    }
    if config.optimizer == "muon":
        return MuonEma(muon_groups(network), momentum=config.muon_momentum, **options)
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    return AdamWEma(trained, **options)


def set_learning_rate(optimizer: AdamWEma, rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


def moments(optimizer: AdamWEma, network: nn.Module, updates: int) -> dict[str, Tensor]:
    """The optimizer's state after `updates` updates: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`.

    And `step.<parameter>` for parameters that have taken part in fewer updates.
    """
    tensors: dict[str, Tensor] = {}
    counts: dict[int, int] = {}  # by counter: parameters share them, and reading one waits for the device
    for name, parameter in network.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
            step = state["step"]
            if id(step) not in counts:
                counts[id(step)] = int(step)
            if counts[id(step)] != updates:
                tensors[f"step.{name}"] = step.clone()
    return tensors


def restore_moments(optimizer: AdamWEma, network: nn.Module, tensors: dict[str, Tensor], updates: int) -> None:
    """Puts back what `moments` gave."""
    for name, parameter in network.named_parameters():
        if f"exp_avg.{name}" in tensors:
            saved = [moment for moment in _MOMENTS if f"{moment}.{name}" in tensors]
            state = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in saved}
            optimizer.state[parameter] = {"step": float(tensors.get(f"step.{name}", updates)), **state}
