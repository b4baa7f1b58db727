"""progdistill: progressive distillation of diffusion models into few-step samplers (Salimans & Ho, ICLR 2022).

teacher = progdistill.train("digits", "runs/teacher", network="digits8", max_train_steps=3000)
student = progdistill.distill(teacher, rounds=5, output_dir="runs/student", updates_per_round=400)
images = progdistill.sample(student, steps=1, batch_size=64)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "Denoiser": "progdistill.core",
    "Sampler": "progdistill.sampling",
    "compare": "progdistill.comparison",
    "convert": "progdistill.training",
    "distill": "progdistill.training",
    "export_diffusers": "progdistill.interop",
    "export_onnx": "progdistill.sampling",
    "export_program": "progdistill.sampling",
    "finetune_trajectory": "progdistill.training",
    "fit_solver": "progdistill.sampling.solvers",
    "from_edm": "progdistill.core",
    "from_flow_matching": "progdistill.core",
    "load": "progdistill.interop",
    "load_guided_diffusion": "progdistill.interop",
    "load_salimans_ho": "progdistill.interop",
    "sample": "progdistill.sampling",
    "save": "progdistill.interop",
    "train": "progdistill.training",
}
_ROOMS = (
    "comparison",
    "core",
    "data",
    "evaluation",
    "interop",
    "metrics",
    "nets",
    "ops",
    "quickstart",
    "report",
    "sampling",
    "training",
)

__all__ = [
    "Denoiser",
    "Sampler",
    "__version__",
    "compare",
    "comparison",
    "convert",
    "core",
    "data",
    "distill",
    "evaluation",
    "export_diffusers",
    "export_onnx",
    "export_program",
    "finetune_trajectory",
    "fit_solver",
    "from_edm",
    "from_flow_matching",
    "interop",
    "load",
    "load_guided_diffusion",
    "load_salimans_ho",
    "metrics",
    "nets",
    "ops",
    "quickstart",
    "report",
    "sample",
    "sampling",
    "save",
    "train",
    "training",
]

if TYPE_CHECKING:
    from progdistill.comparison import compare
    from progdistill.core import Denoiser, from_edm, from_flow_matching
    from progdistill.interop import export_diffusers, load, load_guided_diffusion, load_salimans_ho, save
    from progdistill.sampling import Sampler, export_onnx, export_program, sample
    from progdistill.sampling.solvers import fit_solver
    from progdistill.training import convert, distill, finetune_trajectory, train


def __getattr__(name: str):
    # Rooms are imported when they are first used: the operations alone need neither networks nor Pillow.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"progdistill.{name}")
    raise AttributeError(f"module 'progdistill' has no attribute {name!r}")
