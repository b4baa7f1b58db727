"""What a network makes of its weights before it computes, kept where they are constants."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class MadeOfWeights(ABC):
    """A module that makes a tensor of some of its weights: in every call, or once if they are constants.

    A class says of what (`_weights`) and how (`_made`). To keep it is for networks whose weights stay: the copies that
    teachers and samplers compute with. Weights that require gradients have it made in every call, whatever is kept.
    """

    _kept: Tensor | None = None

    @abstractmethod
    def _weights(self) -> tuple[Tensor, ...]:
        """What it is made of; nothing if this module has nothing to make."""

    @abstractmethod
    def _made(self) -> Tensor:
        """The tensor, of the weights as they are now."""

    def _kept_or_made(self) -> Tensor:
        return self._made() if self._is_made_anew() else self._kept

    def _is_made_anew(self) -> bool:
        return self._kept is None or any(weight.requires_grad for weight in self._weights())

    @torch.no_grad()
    def keep(self) -> None:
        """Makes it of the weights as they are now. Called again, in memory that stays where it is."""
        if not self._weights():
            return
        made = self._made()
        if self._kept is None:
            self._kept = made
        else:
            self._kept.copy_(made)


def keep_constants(network: nn.Module) -> None:
    """Has all modules of a network keep what they make of their weights.

    To be called again when the weights have changed.
    """
    for module in network.modules():
        if isinstance(module, MadeOfWeights):
            module.keep()
