"""Samplers: plain functions over a Denoiser and a list of angles, `sample` on top of them, and whole samplers as graphs
for other runtimes."""

from progdistill.sampling.ddim import ddim
from progdistill.sampling.export_onnx import export_onnx
from progdistill.sampling.export_program import export_program
from progdistill.sampling.exported import Exported
from progdistill.sampling.sample import generate, sample
from progdistill.sampling.sampler import Sampler
from progdistill.sampling.stochastic import stochastic
from progdistill.sampling.unrolled import UnrolledSampler

__all__ = [
    "Exported",
    "Sampler",
    "UnrolledSampler",
    "ddim",
    "export_onnx",
    "export_program",
    "generate",
    "sample",
    "stochastic",
]
