"""Batches without images: noise is all that a recipe needs that lets the student run on its own."""

from __future__ import annotations

import torch

from progdistill.core.random import Stream, integers, sample_seeds
from progdistill.training.batches import Batches, Microbatch
from progdistill.training.config import LoopConfig


class NoiseBatches(Batches):
    """Seeds, and classes for conditional models, uniform; the same ones for all the updates of an iteration.

    Args:
        config, round_index, device: as in `BatchSource`.
        updates_per_iteration: how many updates see the same batch.
        num_classes: None for unconditional models.
    """

    def __init__(
        self,
        config: LoopConfig,
        round_index: int,
        device: torch.device,
        *,
        updates_per_iteration: int,
        num_classes: int | None,
    ) -> None:
        super().__init__(config, round_index, device)
        self.updates_per_iteration = updates_per_iteration
        self.num_classes = num_classes

    def _microbatch(self, update: int, number: int, first: int, following: int, count: int) -> Microbatch:
        iteration = update // self.updates_per_iteration
        first -= (update - iteration) * self.config.train_batch_size
        seeds = sample_seeds(self.config.seed, self.round_index, torch.arange(first, first + count))
        labels = None
        if self.num_classes is not None:
            labels = integers(seeds, 0, Stream.CLASS, self.num_classes).to(self.device)
        return Microbatch(None, labels, seeds, None, update, number)
