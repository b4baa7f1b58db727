"""What samplers ask of their arguments, and the errors that say so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core import Denoiser


def student_for(model: Denoiser, steps: int) -> Denoiser:
    """The model itself if it samples in `steps` steps, else the kept student that does.

    Raises:
        ValueError: neither can; lists the step counts that can.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; use a positive whole number")
    if model.valid_steps is None or steps in model.valid_steps:
        return model.for_steps(steps)
    if steps in model.students:
        student = model.students[steps]()
        return student.to(model.device).for_steps(steps)
    known = sorted({*model.valid_steps, *model.students})
    raise ValueError(
        f"this student was distilled for {_listed(model.valid_steps)} steps, not {steps}: elsewhere its predictions "
        f"mean nothing. Step counts that can be sampled: {_listed(known)}"
    )


def image_count(batch_size, seed, class_labels, latents, generator=None) -> int:
    """How many images a call is for: as many as it says, or as many as something is given for."""
    if batch_size is not None:
        return batch_size
    for given in (latents, generator, seed, class_labels):
        if isinstance(given, (Tensor, Sequence)) and not (isinstance(given, Tensor) and given.dim() == 0):
            return len(given)
    return 1


def checked_latents(latents: Tensor, count: int, sample_shape: tuple[int, ...]) -> Tensor:
    """The latents in float32, if they are as many and as large as they must be."""
    if tuple(latents.shape) != (count, *sample_shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {(count, *sample_shape)}")
    return latents.float()


def checked_labels(class_labels, count: int, num_classes: int | None) -> Tensor | None:
    """(count,) int64 labels on the CPU, or None for a model without classes."""
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


def checked_guidance(guidance_scale, count: int, model: Denoiser) -> Tensor | None:
    """(count,) float32 guidance scales on the CPU, or None where there is no guidance.

    Raises:
        ValueError: a model that cannot be guided or must be; a scale below 1, not finite, or that a student was not
            distilled for.
    """
    if model.guidance_range is None and guidance_scale is None:
        return None
    if model.guidance_range is None and model.unconditional_label is None:
        raise ValueError(
            "guidance_scale was given, but this model cannot be guided: it was trained without label_dropout; leave it "
            "out"
        )
    low, high = model.guidance_range or (1.0, math.inf)
    if guidance_scale is None:
        raise ValueError(f"this model was distilled for guidance scales {low:g} to {high:g}; pass guidance_scale")
    scales = torch.as_tensor(guidance_scale, dtype=torch.float32).cpu()
    scales = scales.expand(count) if scales.dim() == 0 else scales
    if scales.shape != (count,):
        raise ValueError(f"{tuple(scales.shape)} guidance scales for {count} images; pass one for each, or one for all")
    bad = scales[~((scales >= low) & (scales <= high) & scales.isfinite())]
    if len(bad):
        allowed = f"{low:g} to {high:g}, which it was distilled for" if model.guidance_range else "1 (none) and above"
        raise ValueError(f"guidance_scale is {float(bad[0]):g}; this model takes {allowed}")
    return scales


def checked_guidance_range(guidance_range: tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest guidance scale, as floats.

    Raises:
        ValueError: they are no two numbers with 1 <= lowest <= highest < inf.
    """
    scales = tuple(map(float, guidance_range))
    if len(scales) != 2 or not 1 <= scales[0] <= scales[1] < math.inf:
        raise ValueError(
            f"guidance_range is {guidance_range}; give the lowest and the highest scale, such as 1 5, 1 being no "
            "guidance"
        )
    return scales


def _listed(numbers) -> str:
    return ", ".join(str(number) for number in numbers)
