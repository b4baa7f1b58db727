"""`progdistill fit-solver`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

from progdistill.cli.arguments import parse
from progdistill.core.processes import on_main_process
from progdistill.interop import load
from progdistill.sampling.solvers import fit_solver
from progdistill.training.device import choose_device


@dataclasses.dataclass(kw_only=True)
class FitSolverConfig:
    """Fit one number for each network call of a solver, so that it follows a finer one (D-ODE, Kim et al. 2024)."""

    model: str
    """A teacher's folder."""
    solver: str = "ddim"
    """The solver to correct: ddim, ipndm, deis_tab_3, dpm_2, dpm_3, dpmpp_2m, dpmpp_3m, heun ..."""
    steps: int = 10
    """Steps of the solver."""
    scale: int = 10
    """Steps of the finer solver in one of these."""
    batch_size: int = 100
    """Noises that are followed."""
    grid: str = "trailing"
    """Where the steps are: trailing, linspace, polynomial or logsnr."""
    alignment: Literal["nested", "official"] = "nested"
    """nested: both solvers meet at equal noise; official: as the authors' code has it."""
    teacher_solver: str | None = None
    """The finer solver; default: itself for iPNDM and DEIS, else ddim."""
    guidance_scale: float | None = None
    """Of classifier-free guidance, as diffusers counts it: 1 is none. Images can be sampled at this scale only."""
    seed: int = 0
    """Seed of the first noise."""
    output: str | None = None
    """The JSON file to write; default: solvers/SOLVER-STEPS.json in the model's folder, with guidance
    SOLVER-STEPS-guidance-SCALE.json."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(FitSolverConfig, arguments, "fit-solver")
    model = load(config.model, device=choose_device(config.device))
    started = time.perf_counter()
    names = ("solver", "steps", "scale", "batch_size", "grid", "alignment", "teacher_solver", "guidance_scale", "seed")
    fitted = fit_solver(model, **{name: getattr(config, name) for name in names})
    seconds = time.perf_counter() - started
    guided = "" if config.guidance_scale is None else f"-guidance-{config.guidance_scale:g}"
    path = Path(config.output or Path(config.model) / "solvers" / f"{config.solver}-{config.steps}{guided}.json")
    on_main_process(lambda: fitted.save(path))
    calls = f"{fitted.network_calls(model)} network calls"
    if config.guidance_scale is not None and model.guidance_range is None:
        calls += ", twice that for the guidance"
    print(f"{config.solver} in {config.steps} steps ({calls}), fitted in {seconds:.1f} s: {path}")
    print("kappa: " + " ".join(f"{kappa:.3f}" for kappa in fitted.kappas))
