"""Bias-corrected exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """ema_t = sum of (1 - d) d^(t-k) p_k over k <= t, divided by 1 - d^t, so that early weights do not linger.

    Kept in the corrected form: ema <- ema + w_t (p - ema) with w_t = (1 - d) / (1 - d^t); w_1 = 1. d = 0 copies the
    weights, as the released distillation configs do.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Takes in the weights after `updates` (>= 1) updates."""
        weight = (1 - self.decay) / (1 - self.decay**updates)
        torch._foreach_lerp_(list(self._parameters.values()), [p.detach() for p in network.parameters()], weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return self._parameters

    def load_state_dict(self, parameters: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        for name, value in self._parameters.items():
            value.copy_(parameters[name])

    def copy_to(self, network: nn.Module) -> None:
        """Puts the averaged parameters into a network."""
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self._parameters[name])
