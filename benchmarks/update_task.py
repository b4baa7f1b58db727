"""What the updates of benchmarks/train_step.py have in common: networks, images, times and noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from progdistill.core import Denoiser
from progdistill.core.random import Stream, integers
from progdistill.data import ImageDataset, to_float
from progdistill.data.arrays import array_dataset
from progdistill.ops import normal
from progdistill.training.batches import BatchSource
from progdistill.training.config import DistillConfig

IMAGES = 4096
LEARNING_RATE, MAX_GRAD_NORM, EMA_DECAY = 1e-4, 1.0, 0.999


class Draw(NamedTuple):
    """What an update is about."""

    x: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    noise: Tensor
    index: Tensor
    """(B,) int64: the student's step i of N begins at t = (i + 1) / N."""
    labels: Tensor | None


class UpdateTask:
    """One update of the round from 2 N to N steps.

    Args:
        model: the teacher, and what the student begins as.
        stock: the network of the others, called as `UNet2DModel`, with the same weights in float32.
        batch_size: images an update.
        steps: N.

    The images are uniformly random bytes: their values cost no time, and every machine can make them.
    """

    def __init__(self, model: Denoiser, stock: nn.Module, batch_size: int, steps: int) -> None:
        self.model = model
        self.stock = stock
        self.batch_size = batch_size
        self.steps = steps
        self.device = model.device
        self.dataset = _random_images(model)
        self.config = DistillConfig(
            output_dir="not written",
            rounds=1,
            end_steps=steps,
            train_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler="constant",
            max_grad_norm=MAX_GRAD_NORM,
            ema_decay=EMA_DECAY,
            device=str(self.device),
            progress=False,
        )

    @property
    def conditional(self) -> bool:
        """Whether the network wants class labels."""
        return self.model.num_classes is not None

    def batches(self) -> BatchSource:
        """Where progdistill's updates take their images from."""
        return BatchSource(self.dataset, self.config, 0, self.device, self.conditional)

    def draw(self, source: BatchSource, update: int) -> Draw:
        """The images, noise and times that progdistill's update number `update` draws."""
        (microbatch,) = source.microbatches(update)
        seeds = microbatch.seeds.to(self.device)
        index = integers(seeds, update, Stream.TIME, self.steps)
        noise = normal(seeds, update, Stream.NOISE, microbatch.images.shape[1:])
        return Draw(to_float(microbatch.images), noise, index, microbatch.labels)


def _random_images(model: Denoiser) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, *model.sample_shape), generator=generator, dtype=torch.uint8)
    labels = None
    if model.num_classes is not None:
        labels = torch.randint(model.num_classes, (IMAGES,), generator=generator).numpy()
    return array_dataset(images, "random bytes", labels=labels, labels_name="random labels")
