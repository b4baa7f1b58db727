"""Where a model's steps are, if not where its schedule's times are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """The DDIM steps that a network was fine-tuned for: falling angles, and whether the first one needs no network.

    Raises:
        ValueError: angles that do not fall from at most pi/2 to at least 0, or a plan without a network call.
    """

    phis: tuple[float, ...]
    """The angles (N + 1,) of N steps."""
    analytic_first_step: bool = False
    """The first step takes eps to be the noise itself (AFS, Dockhorn et al. 2022), without a network call."""

    def __post_init__(self) -> None:
        phis = self.phis
        falling = all(a >= b for a, b in zip(phis, phis[1:], strict=False))  # false for a nan
        if not falling or self.network_calls < 1 or not (phis[0] <= math.pi / 2 and phis[-1] >= 0.0):
            raise ValueError(
                f"phis are {phis}, analytic_first_step {self.analytic_first_step}; a plan is angles that fall from at "
                "most pi/2 to at least 0, with one step at least that calls the network"
            )

    @property
    def network_calls(self) -> int:
        """Calls an image (NFE)."""
        return len(self.phis) - 1 - int(self.analytic_first_step)

    @property
    def angles(self) -> Tensor:
        """All of `phis`, (N + 1,) float64."""
        return torch.tensor(self.phis, dtype=torch.float64)

    @property
    def trained_phis(self) -> Tensor:
        """The angles of the steps that call the network, and the last one: (network_calls + 1,) float64."""
        return self.angles[int(self.analytic_first_step) :]

    @property
    def first_factor(self) -> float:
        """What noise is multiplied by to become the state of the first network call.

        With eps = z a DDIM step from s to t gives (cos(t) (1 - sin(s)) / cos(s) + sin(t)) z: in EDM's states
        x + (sigma' - sigma) x / sqrt(1 + sigma^2).
        """
        if not self.analytic_first_step:
            return 1.0
        s, t = self.phis[:2]
        return math.cos(t) * math.tan(math.pi / 4 - s / 2) + math.sin(t)

    @property
    def last_factor(self) -> float:
        """What the last state is multiplied by to become the sample, which may keep noise of tan(phis[-1])."""
        return 1.0 / math.cos(self.phis[-1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"phis": list(self.phis), "analytic_first_step": self.analytic_first_step}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingPlan:
        """What `to_dict` described.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        return cls(tuple(float(phi) for phi in values["phis"]), bool(values["analytic_first_step"]))
