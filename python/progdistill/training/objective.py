"""What a recipe gives the loop: its loss, and what comes back from it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import Tensor

from progdistill.core import Denoiser
from progdistill.training.batches import Batch


@dataclasses.dataclass(frozen=True)
class Loss:
    """What an objective computes for a microbatch."""

    pred: Tensor
    """The student's output, or what follows from it, still attached to its graph."""
    grad: Tensor
    """The gradient of the loss for `pred`, already scaled."""
    loss: Tensor
    """(B,) per-sample losses."""
    phi: Tensor
    """(B,) angles."""


class Objective(Protocol):
    """A recipe's loss: (student, microbatch, factor on the sum of the samples' losses) -> Loss."""

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss: ...
