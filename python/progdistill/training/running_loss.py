"""Losses since the last line of the log, by update and noise level."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from progdistill.core.processes import sum_over_processes

NOISE_LEVELS = 10


@dataclasses.dataclass(frozen=True)
class LossSummary:
    """The window's losses over all processes."""

    mean: float
    by_level: list[float | None]
    """In each tenth of the angles from clean to noise; None where there were no samples."""
    first_bad: int | None
    """The first update of the window (from 0) with a loss that is not finite."""
    bad_levels: list[int]
    """The tenths of the angles where it was."""


class RunningLoss:
    """Sums by update of the window and by noise level, kept on the device until they are read."""

    def __init__(self, window: int, device: torch.device) -> None:
        self._window = window
        self._sums = torch.zeros(window, NOISE_LEVELS, dtype=torch.float64, device=device)
        self._counts = torch.zeros_like(self._sums)
        self._levels = torch.arange(NOISE_LEVELS, device=device).unsqueeze(1)

    def add(self, update: int | Tensor, loss: Tensor, phi: Tensor) -> None:
        """Takes in losses (B,) at angles (B,) of an update, whose number may be a tensor of shape () on the device."""
        level = (phi * (NOISE_LEVELS / (math.pi / 2))).long().clamp(max=NOISE_LEVELS - 1)
        here = level == self._levels
        row = torch.as_tensor(update % self._window, device=loss.device).reshape(1)
        # Sums of a fixed order: adding samples by index would be done in any order on a GPU.
        self._sums.index_add_(0, row, torch.where(here, loss.double(), 0.0).sum(1).unsqueeze(0))
        self._counts.index_add_(0, row, here.double().sum(1).unsqueeze(0))

    def state(self) -> dict[str, Tensor]:
        """The sums so far over all processes; a checkpoint between two lines needs them."""
        return {"sums": sum_over_processes(self._sums), "counts": sum_over_processes(self._counts)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state` gave; one process takes all of it."""
        self._sums.copy_(state["sums"])
        self._counts.copy_(state["counts"])

    def read(self) -> LossSummary:
        """Sums up the window."""
        sums, counts = sum_over_processes(self._sums), sum_over_processes(self._counts)
        bad = ~torch.isfinite(sums)
        rows = bad.any(dim=1).nonzero()
        first = int(rows[0]) if len(rows) else None
        levels = bad[first].nonzero().flatten().tolist() if first is not None else []
        by_level = [s / c if c else None for s, c in zip(sums.sum(0).tolist(), counts.sum(0).tolist(), strict=True)]
        return LossSummary(float(sums.sum() / counts.sum().clamp(min=1)), by_level, first, levels)

    def clear(self) -> None:
        """Starts a new window."""
        self._sums.zero_()
        self._counts.zero_()
