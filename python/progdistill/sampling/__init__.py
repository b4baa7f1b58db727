"""Samplers: plain functions over a Denoiser and a list of angles, and `sample` on top of them."""

from progdistill.sampling.ddim import ddim
from progdistill.sampling.sample import generate, sample
from progdistill.sampling.sampler import Sampler
from progdistill.sampling.stochastic import stochastic

__all__ = ["Sampler", "ddim", "generate", "sample", "stochastic"]
