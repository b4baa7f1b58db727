"""Training batches as pure functions of (seed, round, update): resuming needs no data loader state."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
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
    """A microbatch on the device, as an objective takes it."""

    x: Tensor | None
    """(B, C, H, W) float32 in [-1, 1]; None: there are no images."""
    seeds: Tensor
    """(B,) int64, one for each sample: the key of everything random about it."""
    update: int | Tensor
    """The update's number; in the training loop a tensor of shape () on the device, int64."""
    cond: Condition | None


@dataclasses.dataclass(frozen=True)
class Microbatch:
    """What the host decides of a microbatch."""

    images: Tensor | None
    """(B, C, H, W) uint8, on the device; None: there are none."""
    labels: Tensor | None
    """(B,) int64, on the device."""
    seeds: Tensor
    """(B,) int64, on the CPU."""
    flip: Tensor | None
    """(B,) bool, on the CPU: which images are mirrored."""
    update: int
    number: int
    """Counts microbatches through the round, over all processes: the key of the network's dropout."""


class BatchInputs:
    """Memory on a device that one microbatch after the other is written to, and the batch that is made of it there.

    `batch` reads nothing else, so a CUDA graph that holds it sees what has been written since. Writing waits neither
    for the device nor for the host.
    """

    def __init__(self, like: Microbatch, device: torch.device, memory_format: torch.memory_format) -> None:
        self._images = None if like.images is None else torch.empty_like(like.images, memory_format=memory_format)
        self._labels = None if like.labels is None else torch.empty_like(like.labels)
        self._seeds = torch.empty_like(like.seeds, device=device)
        self._flip = None if like.flip is None else torch.empty_like(like.flip, device=device)
        self._update = torch.zeros((), dtype=torch.int64, device=device)

    def write(self, microbatch: Microbatch) -> None:
        """Takes in a microbatch of the same shape."""
        if self._images is not None:
            self._images.copy_(microbatch.images)
        if self._labels is not None:
            self._labels.copy_(microbatch.labels)
        _send(microbatch.seeds, self._seeds)
        if self._flip is not None:
            _send(microbatch.flip, self._flip)
        self._update.fill_(microbatch.update)

    def batch(self) -> Batch:
        """The batch of what was written last."""
        cond = None if self._labels is None else Condition(self._labels)
        x = None if self._images is None else to_float(self._images, flip=self._flip)
        return Batch(x, self._seeds, self._update, cond)


class Batches(ABC):
    """Splits the samples of each update of a round over processes and microbatches."""

    def __init__(self, config: LoopConfig, round_index: int, device: torch.device) -> None:
        parts = config.gradient_accumulation_steps * process_count()
        if config.train_batch_size % parts:
            raise ValueError(
                f"train_batch_size {config.train_batch_size} does not divide into {process_count()} processes times "
                f"{config.gradient_accumulation_steps} microbatches; change it, or gradient_accumulation_steps"
            )
        self.config = config
        self.round_index = round_index
        self.device = device

    def microbatches(self, update: int) -> Iterator[Microbatch]:
        """This process's part of the samples update * B ... of the round, whichever way they are split."""
        size, accumulated = self.config.train_batch_size, self.config.gradient_accumulation_steps
        parts = accumulated * process_count()
        count = size // parts
        own = range(process_rank() * accumulated, (process_rank() + 1) * accumulated)
        firsts = [update * size + part * count for part in own] + [(update + 1) * size + own[0] * count]
        for part, first, following in zip(own, firsts, firsts[1:], strict=False):
            yield self._microbatch(update, update * parts + part, first, following, count)

    @abstractmethod
    def _microbatch(self, update: int, number: int, first: int, following: int, count: int) -> Microbatch:
        """That of the samples first ... first + count - 1; the next one asked for begins at `following`."""


class BatchSource(Batches):
    """The microbatches of each update of a round, from a data set."""

    def __init__(
        self, dataset: ImageDataset, config: LoopConfig, round_index: int, device: torch.device, conditional: bool
    ) -> None:
        super().__init__(config, round_index, device)
        self.dataset = dataset
        self.images = dataset.on(device)
        self.conditional = conditional
        # A round's order is its own: its seed is drawn from (seed, round).
        self._order_seed = int(sample_seeds(config.seed, round_index, torch.tensor([-1])))

    def _microbatch(self, update: int, number: int, first: int, following: int, count: int) -> Microbatch:
        # The following microbatch of this process is read while this one is in use.
        images, labels = self.images.batch(self._indices(first, count), following=self._indices(following, count))
        seeds = sample_seeds(self.config.seed, self.round_index, torch.arange(first, first + count))
        flip = integers(seeds, update, Stream.FLIP, 2).bool() if self.config.random_flip else None
        return Microbatch(images, labels if self.conditional else None, seeds, flip, update, number)

    def _indices(self, first: int, count: int) -> Tensor:
        return sample_indices(self._order_seed, first, count, len(self.dataset))


def _send(host: Tensor, into: Tensor) -> None:
    # From page-locked memory, which is kept until the copy is done, the host need not wait for it.
    into.copy_(host.pin_memory() if into.is_cuda else host, non_blocking=True)
