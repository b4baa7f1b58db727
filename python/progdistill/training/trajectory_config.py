"""The settings of a trajectory fine-tuning (SFD)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from progdistill.sampling.solvers import SOLVERS
from progdistill.training.config import LoopConfig, RunConfig

GRIDS = ("auto", "trailing", "polynomial", "logsnr")


@dataclasses.dataclass(kw_only=True)
class PathConfig(RunConfig):
    """Which trajectory of which teacher a student is to follow."""

    teacher: str = ""
    """The teacher's folder, or its id on the Hugging Face hub, perhaps with @REVISION."""
    steps: tuple[int, ...] = (4,)
    """The student's network calls an image (the paper's NFE). Several: one network for all, told the number (SFD-v)."""
    iterations: int = 1560
    """Batches of noise; each is taken through all steps, with an update for every one (the paper: 200,000 noises). With
    several step counts they take turns."""
    analytic_first_step: bool = True
    """One more step, before the others, that calls no network: there eps is taken to be the noise itself (AFS)."""
    grid: Literal["auto", "trailing", "polynomial", "logsnr"] = "auto"
    """Where the steps are: trailing (equal times of the schedule, to 0), polynomial or logsnr (from sigma_max to
    sigma_min); auto: polynomial on EDM's schedules, else trailing."""
    sigma_min: float = 0.006
    """Where polynomial and logsnr grids end, as sigma / alpha."""
    sigma_max: float = 80.0
    """Where they begin."""
    rho: float = 7.0
    """Exponent of polynomial grids."""
    teacher_solver: str = "dpmpp_3m"
    """The teacher's solver: ddim, dpmpp_2m, dpmpp_3m, heun, ipndm, unipc_3 ..."""
    teacher_substeps: int = 4
    """The teacher's steps inside a student's step (the paper's K)."""
    teacher_thresholding: bool = False
    """Dynamic thresholding of the teacher's x, as the authors' code has it; for pixels only."""
    validation_images: int = 64
    """Images of fixed noise that student and teacher are compared on."""


@dataclasses.dataclass(kw_only=True)
class TrajectoryConfig(LoopConfig, PathConfig):
    """Fine-tune a teacher for few steps along its own trajectory (SFD, Zhou et al. 2024); needs no data."""

    # The released settings, but for the loss, whose mean over an image's elements is theirs divided by their number:
    # to AdamW without clipping and weight decay that is the same.
    learning_rate: float = 5e-5
    lr_scheduler: Literal["constant", "linear", "piecewise_constant"] = "piecewise_constant"
    max_grad_norm: float = 0.0
    ema_decay: float = 0.0
    weighting: str = "constant"
    loss_type: str = "l1"
    perceptual: str = ""
    """A TorchScript file, float images in [-1, 1] to features; where the last step ends, the squared distance from the
    teacher's features is added to the loss (LPIPS in the paper's second stage). It runs as code: one that you trust."""
    perceptual_weight: float = 1.0
    """Of that distance, against the loss, which is a mean over pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.steps = (self.steps,) if isinstance(self.steps, int) else tuple(sorted(set(self.steps), reverse=True))
        if not self.steps or self.steps[-1] < 1 or self.iterations % len(self.steps):
            raise ValueError(
                f"steps are {self.steps}, iterations {self.iterations}; use positive numbers of steps, and a multiple "
                f"of {len(self.steps)} iterations, in which they take turns"
            )
        for name in ("iterations", "teacher_substeps", "validation_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a positive whole number")
        if self.grid not in GRIDS:
            raise ValueError(f"unknown grid {self.grid!r}; use one of {', '.join(GRIDS)}")
        if self.teacher_solver not in SOLVERS:
            raise ValueError(f"teacher_solver is {self.teacher_solver!r}; use one of {', '.join(SOLVERS)}")
        if self.perceptual and (not self.perceptual.endswith((".pt", ".ts")) or not self.perceptual_weight > 0):
            raise ValueError(
                f"perceptual is {self.perceptual!r}, perceptual_weight {self.perceptual_weight}; use a TorchScript "
                "file (.pt or .ts) with a positive weight, or leave it out"
            )
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min}, sigma_max {self.sigma_max}; 0 < sigma_min < sigma_max")
        if self.weighting != "constant" or self.random_flip:
            raise ValueError(
                f"weighting is {self.weighting!r}, random_flip {self.random_flip}; states are compared as they are, "
                "and there are no images: leave both out"
            )

    def plan_steps(self, steps: int) -> int:
        """The steps of a plan with so many network calls, with the one that calls none."""
        return steps + int(self.analytic_first_step)

    @property
    def updates(self) -> int:
        """Updates in all."""
        return self.iterations // len(self.steps) * sum(self.steps)
