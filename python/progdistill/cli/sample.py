"""`progdistill sample`."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from progdistill.cli.arguments import parse
from progdistill.core import Denoiser
from progdistill.core.fingerprint import model_fingerprint
from progdistill.core.processes import (
    is_main_process,
    on_main_process,
    process_count,
    process_rank,
    sum_over_processes,
)
from progdistill.data.output_formats import FolderFormat, ImageSet, NpzFormat, OutputFormat, PictureFormat, ZipFormat
from progdistill.data.parted_output import PartedOutput, Plan
from progdistill.data.writer_thread import WriterThread
from progdistill.interop import load
from progdistill.report import image_grid
from progdistill.sampling.arguments import checked_guidance, student_for
from progdistill.sampling.parts import Pixels, sample_parts
from progdistill.sampling.sampler import default_dtype
from progdistill.sampling.solvers import FittedSolver, chosen_solver
from progdistill.training.device import choose_device
from progdistill.training.stopping import RunInterrupted, StopRequest

_OTHER_FILES = (".npy", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tar", ".gz", ".parquet", ".pt", ".safetensors")


@dataclasses.dataclass(kw_only=True)
class SampleConfig:
    """Generate images with a teacher or student. The same command goes on with what it left unfinished."""

    model: str
    """A model's folder, or its id on the Hugging Face hub."""
    steps: int = 1
    """Network calls an image; a student's own step counts only."""
    num_images: int = 64
    """How many images."""
    output: str = "samples.png"
    """A .png for one grid, an .npz (arr_0, uint8 NHWC), a .zip of PNGs, or a folder of PNGs; PNGs are named by seed."""
    seed: int = 0
    """Seed of the first image; the others follow."""
    class_labels: tuple[int, ...] = ()
    """The images' classes, in turn, for class-conditional models: one for all, or several; default: all in turn."""
    guidance_scale: float | None = None
    """Of classifier-free guidance, as diffusers counts it: 1 is none. Students that were distilled with guidance need
    it; teachers that were trained with label_dropout take it."""
    sampler: str = "ddim"
    """ddim, stochastic or double_step."""
    gamma: float = 0.5
    """Noise level of the stochastic sampler, 0 to 1."""
    solver: str | None = None
    """For a teacher, a solver instead of the sampler: heun, dpmpp_3m, ipndm, unipc_3 ..., or the .json file of
    fit-solver."""
    grid: str = "trailing"
    """Where a named solver's steps are: trailing, linspace, polynomial or logsnr."""
    clip: float | None = None
    """Bound of |x| at each step; none: as plain diffusers samples."""
    max_batch_size: int = 256
    """Images that go through the network at once; also those that an interrupted run may lose."""
    columns: int = 8
    """Columns of the grid."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of the network; auto: bf16 for our own networks on a GPU (DDIM only), else float32."""
    overwrite: bool = False
    """Begin anew, whatever images the output holds."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(SampleConfig, arguments, "sample")
    _check(config)
    make_format = _format_of(config)
    model = student_for(load(config.model, device=choose_device(config.device)), config.steps)
    checked_guidance(config.guidance_scale, 1, model)
    solver = _solver(config, model)
    images = ImageSet(config.num_images, _shape(model), config.seed, _labels(config, model))
    output = PartedOutput(config.output, make_format, images, _settings(config, model, solver))
    environment = _environment(config, model)
    plan = on_main_process(lambda: output.open(config.max_batch_size, environment, overwrite=config.overwrite))
    if plan.finished:
        print(f"{config.output} holds these {config.num_images} images already; --overwrite makes them anew")
        return
    _say_what_is_there(config, plan)
    try:
        _make(config, model, solver, images, output, plan)
    except BaseException:
        if is_main_process():
            output.discard_if_empty()
        raise
    # Adds up, and so waits until every process has written its last part.
    made = int(sum_over_processes(torch.tensor(sum(map(len, _share(plan))))))
    on_main_process(lambda: output.finish(plan.parts))
    print(f"{config.num_images} images in {config.output}" + (f", {made} of them new" if made < images.count else ""))


def _make(
    config: SampleConfig,
    model: Denoiser,
    solver: str | FittedSolver | None,
    images: ImageSet,
    output: PartedOutput,
    plan: Plan,
) -> None:
    made = sample_parts(
        model,
        config.steps,
        _share(plan),
        seed=config.seed,
        class_labels=images.labels,
        guidance_scale=config.guidance_scale,
        sampler=config.sampler,
        gamma=config.gamma,
        solver=solver,
        grid=config.grid,
        clip=config.clip,
        max_batch_size=config.max_batch_size,
        dtype=_dtype(config, model),
    )
    done = images.count - sum(map(len, plan.missing))
    bar = tqdm(
        total=images.count,
        initial=done,
        desc=f"sampling, {config.steps} steps",
        unit=" images",
        disable=not is_main_process(),
        leave=False,
    )

    def write(part: range, pixels: Pixels) -> None:
        output.write(part, pixels.arrived())

    with StopRequest(signal.SIGTERM, signal.SIGINT) as stop, bar, WriterThread(write) as writer:
        # Every process asks equally often whether to stop, for the answer is a sum over all of them.
        for first in range(0, len(plan.missing), process_count()):
            if stop.pending():
                writer.finish()
                _stop(config, done, stop.received)
            for part, pixels in islice(made, 1):
                writer.submit(part, pixels)
            new = sum(map(len, plan.missing[first : first + process_count()]))
            done += new
            bar.update(new)


def _share(plan: Plan) -> list[range]:
    return plan.missing[process_rank() :: process_count()]


def _stop(config: SampleConfig, done: int, received: signal.Signals | None) -> NoReturn:
    message = f"stopped after {done} of {config.num_images} images; the same command makes the others"
    print(message, flush=True)
    if received is signal.SIGINT:
        raise KeyboardInterrupt
    raise RunInterrupted(message)


def _say_what_is_there(config: SampleConfig, plan: Plan) -> None:
    there = config.num_images - sum(map(len, plan.missing))
    if there:
        print(f"{there} of {config.num_images} images are there from before")
    if plan.changes:
        changes = ", ".join(f"{name} was {before}, is {now}" for name, (before, now) in plan.changes.items())
        print(f"note: {changes}: the images made now may differ in rounding from those of one uninterrupted run")


def _check(config: SampleConfig) -> None:
    for name in ("num_images", "max_batch_size", "columns"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; use a number from 1 up")
    named = config.solver is not None and not config.solver.endswith(".json")
    if config.grid != "trailing" and not named:
        raise ValueError(f"--grid {config.grid} is for a --solver by name; a fitted one has its own, ddim is trailing")
    if config.solver is not None and config.sampler != "ddim":
        raise ValueError(f"--solver {config.solver} takes the place of --sampler {config.sampler}: give one of them")
    if config.solver is not None and config.mixed_precision == "bf16":
        raise ValueError("--solver computes in float32; leave --mixed-precision bf16 out")


def _solver(config: SampleConfig, model: Denoiser) -> str | FittedSolver | None:
    """What `sample` takes for one; says what an image costs."""
    if config.solver is None:
        return None
    if config.solver.endswith(".json"):
        solver = FittedSolver.load(config.solver)
        if solver.steps != config.steps:
            raise ValueError(f"{config.solver} was fitted for {solver.steps} steps; pass --steps {solver.steps}")
        if model.valid_steps is not None:
            raise ValueError(f"--solver is for teachers, but this student was distilled for {model.valid_steps} steps")
        calls = solver.network_calls(model)
    else:
        solver = config.solver
        calls = chosen_solver(model, solver, config.steps, config.grid).network_calls
    twice = config.guidance_scale is not None and model.guidance_range is None
    if is_main_process():
        print(f"{config.solver}: {calls} network calls an image" + (", twice that for the guidance" if twice else ""))
    return solver


def _format_of(config: SampleConfig) -> Callable[[ImageSet, Path], OutputFormat]:
    suffix = Path(config.output).suffix.lower()
    if suffix in _OTHER_FILES:
        raise ValueError(
            f"--output {config.output} ends in {suffix}, which is not written; use a .png (one grid), .npz or .zip "
            "file, or a folder's name"
        )
    if suffix == ".png":
        return partial(PictureFormat, draw=partial(image_grid, columns=config.columns))
    return {".npz": NpzFormat, ".zip": ZipFormat}.get(suffix, FolderFormat)


def _shape(model: Denoiser) -> tuple[int, int, int]:
    if len(model.sample_shape) != 3:
        raise ValueError(f"this model's samples have shape {model.sample_shape} and are no images (C, H, W)")
    channels, height, width = model.sample_shape
    return height, width, channels


def _labels(config: SampleConfig, model: Denoiser) -> Tensor | None:
    given = config.class_labels
    if model.num_classes is None:
        if given:
            raise ValueError(f"--class-labels {_listed(given)} was given, but this model knows no classes")
        return None
    if wrong := [label for label in given if not 0 <= label < model.num_classes]:
        raise ValueError(f"--class-labels has {_listed(wrong)}; this model has classes 0 to {model.num_classes - 1}")
    turns = torch.tensor(given or range(model.num_classes))
    return turns[torch.arange(config.num_images) % len(turns)]


def _listed(labels: Sequence[int]) -> str:
    return " ".join(map(str, labels))


def _settings(config: SampleConfig, model: Denoiser, solver: str | FittedSolver | None) -> dict[str, Any]:
    """All that the images depend on, by the options' names; younger options only where they are given."""
    names = ["steps", "num_images", "seed", "class_labels", "sampler", "clip"]
    names += ["gamma"] * (config.sampler == "stochastic") + ["columns"] * config.output.lower().endswith(".png")
    found = {"model": model_fingerprint(model), "dtype": str(_dtype(config, model)).removeprefix("torch.")}
    names += ["guidance_scale"] * (config.guidance_scale is not None) + ["grid"] * isinstance(solver, str)
    if solver is not None:
        found["solver"] = solver if isinstance(solver, str) else _fingerprint(solver)
    return {**found, **{name: getattr(config, name) for name in names}}


def _fingerprint(solver: FittedSolver) -> str:
    numbers = repr((solver.phis, solver.kappas, sorted(solver.options.items())))
    return f"{solver.solver}, fitted: {hashlib.sha256(numbers.encode()).hexdigest()[:16]}"


def _dtype(config: SampleConfig, model: Denoiser) -> torch.dtype:
    """Settled here, for a run that goes on elsewhere must not change it."""
    if config.mixed_precision == "auto":
        with_graphs = model.device.type == "cuda" and config.sampler == "ddim" and config.solver is None
        return default_dtype(model) if with_graphs else torch.float32
    return torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32


def _environment(config: SampleConfig, model: Denoiser) -> dict[str, Any]:
    """What the rounding depends on besides."""
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    threads = torch.get_num_threads() if model.device.type == "cpu" else None
    return {"device": device, "threads": threads, "torch": torch.__version__, "max_batch_size": config.max_batch_size}
