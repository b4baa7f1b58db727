"""`progdistill sample`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from progdistill.cli.arguments import parse
from progdistill.core.processes import gather_on_main_process, is_main_process, share_of, sum_over_processes
from progdistill.data import to_uint8
from progdistill.interop import load
from progdistill.report import image_grid, save_png
from progdistill.sampling.sample import sample
from progdistill.training.device import choose_device


@dataclasses.dataclass(kw_only=True)
class SampleConfig:
    """Generate images with a teacher or student."""

    model: str
    """A model's folder."""
    steps: int = 1
    """Network calls an image; a student's own step counts only."""
    num_images: int = 64
    """How many images."""
    output: str = "samples.png"
    """A .png for one grid, or a folder for one PNG an image, named by its seed."""
    seed: int = 0
    """Seed of the first image; the others follow."""
    class_label: int | None = None
    """The class of all images, for class-conditional models; default: classes in turn."""
    sampler: str = "ddim"
    """ddim or stochastic."""
    gamma: float = 0.5
    """Noise level of the stochastic sampler, 0 to 1."""
    clip: float | None = None
    """Bound of |x| at each step; none: as plain diffusers samples."""
    max_batch_size: int = 256
    """Images that go through the network at once."""
    columns: int = 8
    """Columns of the grid."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(SampleConfig, arguments, "sample")
    model = load(config.model, device=choose_device(config.device))
    labels = None
    if model.num_classes is not None:
        labels = torch.arange(config.num_images) % model.num_classes
        if config.class_label is not None:
            labels = torch.full_like(labels, config.class_label)
    # Each of several processes makes its share; an image depends on its own seed only.
    mine = share_of(config.num_images)
    seeds = config.seed + torch.arange(mine.start, mine.stop)
    images = sample(
        model,
        config.steps,
        batch_size=len(seeds),
        seed=seeds,
        class_labels=None if labels is None else labels[mine.start : mine.stop],
        sampler=config.sampler,
        gamma=config.gamma,
        clip=config.clip,
        max_batch_size=config.max_batch_size,
        output_type="pt",
        progress=is_main_process(),
    )
    pixels = to_uint8(images.cpu() * 2 - 1)
    if config.output.endswith(".png"):
        parts = gather_on_main_process(pixels)
        if parts:
            save_png(image_grid(torch.cat(parts), columns=config.columns), config.output)
    else:
        for seed, image in zip(seeds.tolist(), pixels, strict=True):
            save_png(image_grid(image[None], columns=1, scale=1, gap=0), Path(config.output) / f"{seed:06d}.png")
    made = int(sum_over_processes(torch.tensor(len(pixels))))
    print(f"{made} images in {config.output}")
