"""A solver with learned corrections, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.core.files import write_json_atomic
from progdistill.sampling.solvers.named import SOLVERS, solver_stages
from progdistill.sampling.solvers.stages import Stage, network_calls, solve

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class FittedSolver:
    """A D-ODE solver (Kim et al. 2024): a named solver on a grid, and a number for each of its network calls.

    `fit_solver` makes it. Called as solver(denoiser, z, cond, clip=...) it samples with as many network calls as the
    solver that it corrects.
    """

    solver: str
    phis: tuple[float, ...]
    kappas: tuple[float, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the solver."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON-ready facts about how it was fitted."""
    guidance_scale: float | None = None
    """The scale of classifier-free guidance that it was fitted at, the only one that it samples at; None: none."""

    @property
    def steps(self) -> int:
        """Steps of the grid."""
        return len(self.phis) - 1

    def stages(self, denoiser: Denoiser) -> list[Stage]:
        """The solver's stages, one for each number."""
        stages = solver_stages(self.solver, torch.tensor(self.phis, dtype=torch.float64), denoiser, **self.options)
        if len(stages) != len(self.kappas):
            raise ValueError(
                f"{self.solver} on this grid has {len(stages)} stages, but there are {len(self.kappas)} kappas: they "
                "were fitted for another solver or grid; fit it again"
            )
        return stages

    def network_calls(self, denoiser: Denoiser) -> int:
        """Calls an image (NFE)."""
        return network_calls(self.stages(denoiser))

    def __call__(
        self, denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, clip: float | None = None
    ) -> Tensor:
        """The sample (B, ...) for a state z at the first of `phis`, before it is clamped to the data's range.

        Raises:
            ValueError: another guidance scale in `cond` than the solver was fitted at; another number of stages than of
                kappas.
        """
        self._check_guidance(denoiser, cond)
        return solve(denoiser, z, self.stages(denoiser), cond, clip=clip, corrections=self.kappas)

    def _check_guidance(self, denoiser: Denoiser, cond: Condition | None) -> None:
        scales = None if cond is None else cond.guidance_scale
        if scales is None and denoiser.guidance_range is not None:
            return  # The network itself says that it must be told one.
        fitted = 1.0 if self.guidance_scale is None else self.guidance_scale  # 1 is no guidance
        scales = torch.ones(1) if scales is None else scales.detach().float().cpu().reshape(-1)
        if len(other := scales[scales != torch.tensor(fitted, dtype=torch.float32)]):
            raise ValueError(
                f"guidance_scale is {float(other[0]):g}, but the solver was fitted at {fitted:g}, along whose path its "
                f"numbers lead (1 is no guidance): sample at {fitted:g}, or fit one with guidance_scale={other[0]:g}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file, whole or not at all."""
        write_json_atomic(path, {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FittedSolver:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or of another version.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if values.pop("format_version") != FORMAT_VERSION:
                raise ValueError("its format_version is another one than this progdistill reads")
            for name in ("phis", "kappas"):
                values[name] = tuple(_finite(name, number) for number in values[name])
            if values["solver"] not in SOLVERS:
                raise ValueError(f"solver is {values['solver']!r}; known are {', '.join(SOLVERS)}")
            if (scale := values.get("guidance_scale")) is not None:
                values["guidance_scale"] = _finite("guidance_scale", scale)
            return cls(**values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no fitted solver ({error}); fit it again") from error


def _finite(name: str, number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise ValueError(f"{name} holds {number!r}")
    return float(number)
