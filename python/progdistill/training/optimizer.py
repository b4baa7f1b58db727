"""AdamW as the recipes use it, its learning rate as a pure function of the update, and its state by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from progdistill.training.config import LoopConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(config: LoopConfig, update: int, total: int) -> float:
    """The rate of update number `update` (from 0) of a round of `total`: warm-up, then constant or linear to 0."""
    rate = config.learning_rate
    if update < config.lr_warmup_steps:
        return rate * (update + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "linear":
        return rate * (total - update) / max(1, total - config.lr_warmup_steps)
    return rate


def make_optimizer(network: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay over all parameters, in torch's fused implementation."""
    return torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def moments(optimizer: torch.optim.AdamW, network: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
        for moment in _MOMENTS
    }


def restore_moments(optimizer: torch.optim.AdamW, network: nn.Module, tensors: dict[str, Tensor], updates: int) -> None:
    """Puts back what `moments` gave, after `updates` updates."""
    for name, parameter in network.named_parameters():
        if f"exp_avg.{name}" in tensors:
            state = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
            step = torch.tensor(float(updates), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {"step": step, **state}
