"""What every exported file of a sampler is held to: described, compared with our own sampler, never half there."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill import __version__
from progdistill.core import Condition, Denoiser
from progdistill.core.modes import evaluating
from progdistill.sampling.ddim import follow_plan
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.unrolled import UnrolledSampler

Run = Callable[..., Tensor]

# In units of the images' range [-1, 1]: an eighth of a grey level. Other float32 kernels differ by 1e-7 to 1e-5.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that holds a sampler as one graph.

    path: the file. difference: the largest deviation of its images from `ddim`'s, in [-1, 1]; None: not compared.
    """

    path: Path
    difference: float | None


def description(sampler: UnrolledSampler, batch_size: int | None) -> dict[str, Any]:
    """JSON-ready facts that are kept inside the file."""
    return {
        "progdistill_version": __version__,
        "steps": sampler.steps,
        "prediction_type": sampler.prediction_type,
        "schedule": sampler.schedule.to_dict(),
        "sample_shape": list(sampler.sample_shape),
        "num_classes": sampler.num_classes,
        "clip": sampler.clip,
        "output_type": sampler.output_type,
        "batch_size": batch_size,
    }


def description_as_strings(sampler: UnrolledSampler, batch_size: int | None) -> dict[str, str]:
    """The same as text by name: strings as they are, all else as JSON."""
    facts = description(sampler, batch_size)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def check_target(path: str | os.PathLike[str], batch_size: int | None, tolerance: float) -> Path:
    """The path, after a look at what would otherwise fail only after minutes of work."""
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}; use a positive whole number, or None for any batch size")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; use a number above 0, the default is {TOLERANCE}")
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file inside it")
    return target


def checked_difference(
    run: Run, sampler: UnrolledSampler, student: Denoiser, batch_size: int | None, tolerance: float
) -> float:
    """The largest deviation of an exported sampler's images from those of `ddim` on the student itself.

    Args:
        run: called as run(noise[, class_labels]) with CPU tensors; returns images on the CPU.
        batch_size: the one that was exported; None compares batches of 1 and 3.

    Raises:
        RuntimeError: images of another shape or dtype, or farther off than `tolerance` (NaN is).
    """
    worst = 0.0
    for count in (1, 3) if batch_size is None else (batch_size,):
        noise = seeded_latents(torch.arange(count), sampler.sample_shape)
        labels = None if sampler.num_classes is None else torch.arange(count) % sampler.num_classes
        got = run(noise) if labels is None else run(noise, labels)
        deviation = _deviation(got, _expected(student, sampler, noise, labels), sampler.output_type)
        # NaN is no deviation within any bound.
        if not deviation <= tolerance:
            raise RuntimeError(
                f"the exported graph's images deviate from progdistill's by {deviation:.3g} in their range [-1, 1], "
                f"more than the tolerance of {tolerance:g}; no file was written. Raise the tolerance if the network "
                "computes in low precision; else please report it"
            )
        worst = max(worst, deviation)
    return worst


@torch.no_grad()
def _expected(student: Denoiser, sampler: UnrolledSampler, noise: Tensor, labels: Tensor | None) -> Tensor:
    cond = None if labels is None else Condition(labels.to(student.device))
    with evaluating(student):
        x = follow_plan(student, noise.to(student.device), sampler.plan, cond, clip=sampler.clip)
    return x.clamp(-1, 1).cpu()


def _deviation(got: Tensor, expected: Tensor, output_type: str) -> float:
    if output_type == "uint8":
        expected = expected.movedim(1, -1)
    dtype = torch.uint8 if output_type == "uint8" else torch.float32
    if got.dtype != dtype or got.shape != expected.shape:
        raise RuntimeError(
            f"the exported graph returns {got.dtype} {tuple(got.shape)} instead of {dtype} {tuple(expected.shape)}; no "
            "file was written"
        )
    if output_type == "float":
        return float((got - expected).abs().max())
    # A grey level stands for an interval of 2 / 255: what lies in it was rounded rightly.
    return float(((got.double() / 127.5 - 1 - expected).abs() - 1 / 255).clamp(min=0).max())
