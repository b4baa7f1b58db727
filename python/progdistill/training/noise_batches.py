"""Batches without images: noise is all that a recipe needs that lets the student run on its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from progdistill.core.random import Stream, integers, sample_seeds
from progdistill.training.batches import Batches, Microbatch
from progdistill.training.config import LoopConfig


class NoiseBatches(Batches):
    """Seeds, and classes for conditional models, uniform; the same ones for all the updates of an iteration.

    Args:
        config, round_index, device: as in `BatchSource`.
        iterations: the updates of one iteration, or of several ones that take turns: each sees a batch of its own.
        num_classes: None for unconditional models.
    """

    def __init__(
        self,
        config: LoopConfig,
        round_index: int,
        device: torch.device,
        *,
        iterations: Sequence[int],
        num_classes: int | None,
    ) -> None:
        super().__init__(config, round_index, device)
        self.turns = [turn for turn, updates in enumerate(iterations) for _ in range(updates)]
        self.num_classes = num_classes

    def _microbatch(self, update: int, number: int, first: int, following: int, count: int) -> Microbatch:
        iteration = update // len(self.turns) * (self.turns[-1] + 1) + self.turns[update % len(self.turns)]
        first -= (update - iteration) * self.config.train_batch_size
        seeds = sample_seeds(self.config.seed, self.round_index, torch.arange(first, first + count))
        labels = None
        if self.num_classes is not None:
            labels = integers(seeds, 0, Stream.CLASS, self.num_classes).to(self.device)
        return Microbatch(None, labels, seeds, None, update, number)
