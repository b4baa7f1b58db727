"""`progdistill.sample`: one call from noise to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from progdistill.core import Condition, Denoiser
from progdistill.core.modes import evaluating
from progdistill.sampling.arguments import checked_guidance, checked_labels, checked_latents, image_count, student_for
from progdistill.sampling.ddim import follow_plan
from progdistill.sampling.double_step import double_step
from progdistill.sampling.images import FORM_OF, check_output_type, delivered, to_output
from progdistill.sampling.latents import generator_latents, image_seeds, seeded_latents
from progdistill.sampling.sampler import GraphMode
from progdistill.sampling.sampler_cache import sampler_for
from progdistill.sampling.solvers import FittedSolver, Solver, chosen_solver
from progdistill.sampling.stochastic import stochastic

SAMPLERS = ("ddim", "stochastic", "double_step")


def sample(
    model: Denoiser,
    steps: int = 1,
    *,
    num_inference_steps: int | None = None,
    batch_size: int | None = None,
    seed: int | Sequence[int] | Tensor = 0,
    class_labels: int | Sequence[int] | Tensor | None = None,
    guidance_scale: float | Sequence[float] | Tensor | None = None,
    latents: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    sampler: str = "ddim",
    gamma: float = 0.5,
    solver: str | FittedSolver | None = None,
    grid: str | Sequence[float] | Tensor = "trailing",
    solver_options: Mapping[str, Any] | None = None,
    clip: float | None = None,
    output_type: str = "pil",
    max_batch_size: int = 256,
    dtype: torch.dtype | None = None,
    cuda_graph: GraphMode = "auto",
    progress: bool = False,
) -> Any:
    """Generates images.

    Args:
        model: a teacher (any step count) or a student (its own step counts; for others the kept student is taken).
        steps: network calls an image; `num_inference_steps` is an alias.
        batch_size: how many images; default 1, or as many as seeds, labels, latents or generators are given.
        seed: the first of consecutive per-image seeds, or one seed for each image. An image's noise depends on its
            own seed alone, bitwise, whatever the batch.
        class_labels: a label for all images or one for each; required by class-conditional models.
        guidance_scale: of classifier-free guidance as diffusers counts it: 1 is none, the paper's w is one less. One
            for all images or one for each. A teacher that was trained with label_dropout is called twice a step; a
            student that was distilled with guidance takes it as an input and must be given one. Default: no guidance.
        latents: (B, C, H, W) starting noise to use instead of seeds.
        generator: torch generator(s); reproduces the noise of diffusers' pipelines instead of seeds.
        sampler: "ddim" (deterministic), "stochastic" (the paper's, see `gamma`) or "double_step" (Meng et al. 2023).
        gamma: noise level of the stochastic sampler, 0 = lower, 1 = upper bound of the variance.
        solver: instead of a sampler, a solver of the probability-flow ODE for a teacher: one of
            `sampling.solvers.SOLVERS`, such as "dpmpp_3m", "ipndm" or "unipc_3", or what `fit_solver` has made, which
            has its own grid. A student was made for DDIM.
        grid: where the solver's steps are; see `sampling.solvers.make_grid`.
        solver_options: further keyword arguments of the solver and the grid, such as analytic_first_step=True,
            thresholding=Thresholding(), sigma_min=0.006.
        clip: None (as plain diffusers samples), or a bound of |x| at each step; the last image is clamped anyway.
        output_type: "pil", "np" (B, H, W, C in [0, 1]), "pt" (B, C, H, W in [0, 1]) or "uint8" (a tensor of bytes,
            B, H, W, C, on the model's device).
        max_batch_size: images that go through the network at once.
        dtype: what the network computes in; default bfloat16 for our own networks on a GPU, else float32 (on a CPU with
            instructions for it bfloat16 is faster). The state and the steps are float32. The other samplers take
            float32 alone.
        cuda_graph: "auto": DDIM on a GPU runs as one CUDA graph, all steps in it, made at the first call and kept for
            the next (see `Sampler`); "require": an error where that cannot be; False: never.
        progress: show a progress bar.

    Weights that were changed in place since the last call are taken in, as torch counts changes: not what is written
    through `.data` (as diffusers' `EMAModel.copy_to` does) or by the replay of a CUDA graph. Use a `Sampler` and its
    `refresh` there.

    Raises:
        ValueError: a step count that the student was not trained for (the message lists those that it was), labels
            that are missing, superfluous or out of range, arguments that contradict each other.
    """
    steps = steps if num_inference_steps is None else num_inference_steps
    check_output_type(output_type, model.sample_shape)
    count = image_count(batch_size, seed, class_labels, latents, generator)
    seeds = image_seeds(seed, count)
    if latents is not None:
        start = checked_latents(latents, count, model.sample_shape)
    elif generator is not None:
        start = generator_latents(generator, count, model.sample_shape)
    else:
        start = None
    labels = checked_labels(class_labels, count, model.num_classes)
    scales = checked_guidance(guidance_scale, count, model)
    if _takes_fixed_steps(model, sampler if solver is None else "solver", dtype, cuda_graph):
        ready = sampler_for(model, steps, max_batch_size, dtype, clip, cuda_graph)
        batches = tqdm(
            range(0, max(count, 1), max_batch_size), desc=f"sampling, {steps} steps", disable=not progress, leave=False
        )
        given = seeds if start is None else start
        form, parts = FORM_OF[output_type], []
        for first in batches:
            part = slice(first, first + max_batch_size)
            parts.append(ready.generate(given[part], _part(labels, part), _part(scales, part), form=form))
        return delivered(torch.cat(parts) if len(parts) != 1 else parts[0], output_type)
    x = generate(
        model,
        steps,
        seeds=seeds,
        latents=start,
        class_labels=labels,
        guidance_scale=scales,
        sampler=sampler,
        gamma=gamma,
        solver=_solver(model, solver, steps, grid, solver_options or {}),
        clip=clip,
        max_batch_size=max_batch_size,
        progress=progress,
    )
    return to_output(x, output_type)


def _solver(
    model: Denoiser, solver: str | FittedSolver | None, steps: int, grid: Any, options: Mapping[str, Any]
) -> Solver | FittedSolver | None:
    if solver is None or isinstance(solver, str):
        return None if solver is None else chosen_solver(model, solver, steps, grid, **options)
    if steps != solver.steps or options or grid != "trailing":
        raise ValueError(
            f"the solver was fitted for {solver.steps} steps of a grid of its own; pass steps={solver.steps} and leave "
            "grid and solver_options out"
        )
    return solver


def _part(values: Tensor | None, part: slice) -> Tensor | None:
    return None if values is None else values[part]


def _takes_fixed_steps(model: Denoiser, sampler: str, dtype: torch.dtype | None, cuda_graph: GraphMode) -> bool:
    # On the CPU in float32 there is nothing to be had from them but another rounding.
    wanted = model.device.type == "cuda" or dtype not in (None, torch.float32) or cuda_graph in ("require", True)
    if sampler == "ddim" or not wanted:
        return wanted
    if cuda_graph in ("require", True) or dtype not in (None, torch.float32):
        who = "a solver" if sampler == "solver" else f"sampler={sampler!r}"
        raise ValueError(
            f"{who} runs in float32 without a CUDA graph; leave dtype={dtype} and cuda_graph={cuda_graph!r} out, or "
            "use sampler='ddim'"
        )
    return False


def generate(
    model: Denoiser,
    steps: int,
    *,
    seeds: Tensor,
    latents: Tensor | None = None,
    class_labels: Tensor | None = None,
    guidance_scale: Tensor | None = None,
    sampler: str = "ddim",
    gamma: float = 0.5,
    solver: Solver | FittedSolver | None = None,
    clip: float | None = None,
    max_batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Samples (B, ...) float32 clamped to [-1, 1], on the model's device, from per-image seeds (B,) or latents.

    `class_labels` (B,) int64 and `guidance_scale` (B,) float32 are as `sample` has checked them. The network is used in
    eval mode; its own mode is restored afterwards.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; use one of {', '.join(SAMPLERS)}")
    model = student_for(model, steps)
    device, phis, plan = model.device, model.schedule.grid(steps), model.plan(steps)
    if sampler != "ddim" and steps in model.sampling_plans:
        raise ValueError(
            f"sampler is {sampler!r}, but this model was fine-tuned for DDIM along angles of its own; leave it out"
        )
    batches = range(0, len(seeds), max_batch_size)
    samples = []
    with evaluating(model):
        for first in tqdm(batches, desc=f"sampling, {steps} steps", disable=not progress, leave=False):
            part = slice(first, first + max_batch_size)
            own_seeds = seeds[part].to(device)
            z = seeded_latents(own_seeds, model.sample_shape) if latents is None else latents[part].to(device)
            cond = None
            if class_labels is not None:
                scales = None if guidance_scale is None else guidance_scale[part].to(device)
                cond = Condition(class_labels[part].to(device), scales)
            if solver is not None:
                z = solver(model, z, cond, clip=clip)
            elif sampler == "ddim":
                z = follow_plan(model, z, plan, cond, clip=clip)
            elif sampler == "stochastic":
                z = stochastic(model, z, phis, own_seeds, cond, gamma=gamma, clip=clip)
            else:
                z = double_step(model, z, phis, own_seeds, cond, clip=clip)
            samples.append(z.clamp(-1, 1))
    return torch.cat(samples) if samples else torch.empty((0, *model.sample_shape), device=device)
