"""`progdistill.sample`: one call from noise to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from progdistill.core import Condition, Denoiser
from progdistill.core.modes import evaluating
from progdistill.sampling.ddim import ddim
from progdistill.sampling.images import check_output_type, to_output
from progdistill.sampling.latents import generator_latents, image_seeds, seeded_latents
from progdistill.sampling.stochastic import stochastic

SAMPLERS = ("ddim", "stochastic")


def sample(
    model: Denoiser,
    steps: int = 1,
    *,
    num_inference_steps: int | None = None,
    batch_size: int | None = None,
    seed: int | Sequence[int] | Tensor = 0,
    class_labels: int | Sequence[int] | Tensor | None = None,
    latents: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    sampler: str = "ddim",
    gamma: float = 0.5,
    clip: float | None = None,
    output_type: str = "pil",
    max_batch_size: int = 256,
    progress: bool = False,
) -> Any:
    """Generates images.

    Args:
        model: a teacher (any step count) or a student (its own step counts; for others the kept student is taken).
        steps: network calls an image; `num_inference_steps` is an alias.
        batch_size: how many images; default 1, or as many as seeds, labels, latents or generators are given.
        seed: the first of consecutive per-image seeds, or one seed for each image. An image's noise depends on its
            own seed alone, bitwise, whatever the batch.
        class_labels: a label for all images or one for each; required by class-conditional models.
        latents: (B, C, H, W) starting noise to use instead of seeds.
        generator: torch generator(s); reproduces the noise of diffusers' pipelines instead of seeds.
        sampler: "ddim" (deterministic) or "stochastic" (the paper's, see `gamma`).
        gamma: noise level of the stochastic sampler, 0 = lower, 1 = upper bound of the variance.
        clip: None (as plain diffusers samples), or a bound of |x| at each step; the last image is clamped anyway.
        output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
        max_batch_size: images that go through the network at once.
        progress: show a progress bar.

    Raises:
        ValueError: a step count that the student was not trained for (the message lists those that it was), labels
            that are missing, superfluous or out of range, arguments that contradict each other.
    """
    steps = steps if num_inference_steps is None else num_inference_steps
    check_output_type(output_type, model.sample_shape)
    count = _image_count(batch_size, seed, class_labels, latents, generator)
    seeds = image_seeds(seed, count)
    if latents is not None:
        start = _checked_latents(latents, count, model.sample_shape)
    elif generator is not None:
        start = generator_latents(generator, count, model.sample_shape)
    else:
        start = None
    labels = _checked_labels(class_labels, count, model.num_classes)
    x = generate(
        model,
        steps,
        seeds=seeds,
        latents=start,
        class_labels=labels,
        sampler=sampler,
        gamma=gamma,
        clip=clip,
        max_batch_size=max_batch_size,
        progress=progress,
    )
    return to_output(x, output_type)


def generate(
    model: Denoiser,
    steps: int,
    *,
    seeds: Tensor,
    latents: Tensor | None = None,
    class_labels: Tensor | None = None,
    sampler: str = "ddim",
    gamma: float = 0.5,
    clip: float | None = None,
    max_batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Samples (B, ...) float32 clamped to [-1, 1], on the model's device, from per-image seeds (B,) or latents.

    The network is used in eval mode; its own mode is restored afterwards.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; use one of {', '.join(SAMPLERS)}")
    model = student_for(model, steps)
    device, phis = model.device, model.schedule.grid(steps)
    batches = range(0, len(seeds), max_batch_size)
    samples = []
    with evaluating(model):
        for first in tqdm(batches, desc=f"sampling, {steps} steps", disable=not progress, leave=False):
            part = slice(first, first + max_batch_size)
            own_seeds = seeds[part].to(device)
            z = seeded_latents(own_seeds, model.sample_shape) if latents is None else latents[part].to(device)
            cond = None if class_labels is None else Condition(class_labels[part].to(device))
            if sampler == "ddim":
                z = ddim(model, z, phis, cond, clip=clip)
            else:
                z = stochastic(model, z, phis, own_seeds, cond, gamma=gamma, clip=clip)
            samples.append(z.clamp(-1, 1))
    return torch.cat(samples) if samples else torch.empty((0, *model.sample_shape), device=device)


def student_for(model: Denoiser, steps: int) -> Denoiser:
    """The model itself if it samples in `steps` steps, else the kept student that does.

    Raises:
        ValueError: neither can; lists the step counts that can.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; use a positive whole number")
    if model.valid_steps is None or steps in model.valid_steps:
        return model
    if steps in model.students:
        student = model.students[steps]()
        return student.to(model.device)
    known = sorted({*model.valid_steps, *model.students})
    raise ValueError(
        f"this student was distilled for {_listed(model.valid_steps)} steps, not {steps}: elsewhere its predictions "
        f"mean nothing. Step counts that can be sampled: {_listed(known)}"
    )


def _image_count(batch_size, seed, class_labels, latents, generator) -> int:
    if batch_size is not None:
        return batch_size
    for given in (latents, generator, seed, class_labels):
        if isinstance(given, (Tensor, Sequence)) and not (isinstance(given, Tensor) and given.dim() == 0):
            return len(given)
    return 1


def _checked_latents(latents: Tensor, count: int, sample_shape: tuple[int, ...]) -> Tensor:
    if tuple(latents.shape) != (count, *sample_shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {(count, *sample_shape)}")
    return latents.float()


def _checked_labels(class_labels, count: int, num_classes: int | None) -> Tensor | None:
    if num_classes is None:
        if class_labels is not None:
            raise ValueError("class_labels were given, but this model is unconditional; leave them out")
        return None
    if class_labels is None:
        raise ValueError(f"this model is conditioned on {num_classes} classes; pass class_labels (one for each image)")
    labels = torch.as_tensor(class_labels, dtype=torch.int64).cpu()
    labels = labels.expand(count) if labels.dim() == 0 else labels
    if labels.shape != (count,):
        raise ValueError(f"{tuple(labels.shape)} class_labels for {count} images; pass one for each, or one for all")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        bad = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ValueError(f"class label {int(bad)} is out of range; this model has classes 0 to {num_classes - 1}")
    return labels


def _listed(numbers) -> str:
    return ", ".join(str(number) for number in numbers)
