"""Solvers of the probability-flow ODE: each turns a grid of angles into stages, which `solve` follows."""

from progdistill.sampling.solvers.fit import correctable_stages, fit_solver
from progdistill.sampling.solvers.fitted import FittedSolver
from progdistill.sampling.solvers.grids import GRIDS, make_grid
from progdistill.sampling.solvers.named import SOLVERS, Solver, chosen_solver, solver_stages
from progdistill.sampling.solvers.prediction import Thresholding
from progdistill.sampling.solvers.stages import Stage, network_calls, solve, with_analytic_first_step

__all__ = [
    "GRIDS",
    "SOLVERS",
    "FittedSolver",
    "Solver",
    "Stage",
    "Thresholding",
    "chosen_solver",
    "correctable_stages",
    "fit_solver",
    "make_grid",
    "network_calls",
    "solve",
    "solver_stages",
    "with_analytic_first_step",
]
