"""Training batches as pure functions of (seed, round, update): resuming needs no data loader state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from progdistill.core import Condition
from progdistill.core.processes import process_count, process_rank
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
    number: int
    """Counts microbatches through the round, over all processes: the key of the network's dropout."""
    cond: Condition | None


class BatchSource:
    """The microbatches of each update of a round."""

    def __init__(
        self, dataset: ImageDataset, config: LoopConfig, round_index: int, device: torch.device, conditional: bool
    ) -> None:
        parts = config.gradient_accumulation_steps * process_count()
        if config.train_batch_size % parts:
            raise ValueError(
                f"train_batch_size {config.train_batch_size} does not divide into {process_count()} processes times "
                f"{config.gradient_accumulation_steps} microbatches; change it, or gradient_accumulation_steps"
            )
        self.dataset = dataset
        self.images = dataset.on(device)
        self.config = config
        self.round_index = round_index
        self.device = device
        self.conditional = conditional
        # A round's order is its own: its seed is drawn from (seed, round).
        self._order_seed = int(sample_seeds(config.seed, round_index, torch.tensor([-1])))

    def microbatches(self, update: int) -> Iterator[Batch]:
        """This process's part of the samples update * B ... of the round, whichever way they are split."""
        size, accumulated = self.config.train_batch_size, self.config.gradient_accumulation_steps
        parts = accumulated * process_count()
        count = size // parts
        own = range(process_rank() * accumulated, (process_rank() + 1) * accumulated)
        firsts = [update * size + part * count for part in own] + [(update + 1) * size + own[0] * count]
        for part, first, following in zip(own, firsts, firsts[1:], strict=False):
            yield self._batch(update, update * parts + part, first, following, count)

    def _batch(self, update: int, number: int, first: int, following: int, count: int) -> Batch:
        # The following microbatch of this process is read while this one is in use.
        images, labels = self.images.batch(self._indices(first, count), following=self._indices(following, count))
        seeds = sample_seeds(self.config.seed, self.round_index, torch.arange(first, first + count))
        flip = None
        if self.config.random_flip:
            flip = integers(seeds, update, Stream.FLIP, 2).bool().to(self.device)
        cond = Condition(labels) if self.conditional else None
        return Batch(to_float(images, flip=flip), seeds.to(self.device), update, number, cond)

    def _indices(self, first: int, count: int) -> Tensor:
        return sample_indices(self._order_seed, first, count, len(self.dataset))
