"""Training batches as pure functions of (seed, round, update): resuming needs no data loader state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from progdistill.core import Condition
from progdistill.core.random import Stream, integers, sample_seeds
from progdistill.data import ImageDataset, sample_indices, to_float
from progdistill.training.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class Batch:
    """A microbatch on the device."""

    x: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    seeds: Tensor
    """(B,) int64, one for each sample: the key of everything random about it."""
    update: int
    cond: Condition | None


class BatchSource:
    """The microbatches of each update of a round."""

    def __init__(
        self, dataset: ImageDataset, config: LoopConfig, round_index: int, device: torch.device, conditional: bool
    ) -> None:
        self.dataset = dataset
        self.images = dataset.on(device)
        self.config = config
        self.round_index = round_index
        self.device = device
        self.conditional = conditional
        # A round's order is its own: its seed is drawn from (seed, round).
        self._order_seed = int(sample_seeds(config.seed, round_index, torch.tensor([-1])))

    def microbatches(self, update: int) -> Iterator[Batch]:
        """Sample numbers update * B ... of the round, whichever way they are split."""
        size = self.config.train_batch_size
        count = size // self.config.gradient_accumulation_steps
        for first in range(update * size, (update + 1) * size, count):
            yield self._batch(update, first, count)

    def _batch(self, update: int, first: int, count: int) -> Batch:
        # The next microbatch, of this update or the next one, follows on; it is read while this one is in use.
        images, labels = self.images.batch(self._indices(first, count), following=self._indices(first + count, count))
        seeds = sample_seeds(self.config.seed, self.round_index, torch.arange(first, first + count))
        flip = None
        if self.config.random_flip:
            flip = integers(seeds, update, Stream.FLIP, 2).bool().to(self.device)
        cond = Condition(labels) if self.conditional else None
        return Batch(to_float(images, flip=flip), seeds.to(self.device), update, cond)

    def _indices(self, first: int, count: int) -> Tensor:
        return sample_indices(self._order_seed, first, count, len(self.dataset))
