"""`progdistill export`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import torch

from progdistill.cli.arguments import parse
from progdistill.core import Denoiser
from progdistill.interop import baked_guidance, baked_step_count, export_diffusers, load
from progdistill.sampling import Exported, export_onnx, export_program
from progdistill.sampling.arguments import student_for
from progdistill.sampling.exported import TOLERANCE


@dataclasses.dataclass(kw_only=True)
class ExportConfig:
    """Write a model for programs without progdistill: its N-step sampler as one graph, noise in and images out, or a
    folder for plain diffusers."""

    model: str
    """A model's folder, or its id on the Hugging Face hub."""
    output: str
    """The file to write; diffusers: the folder."""
    format: str = "onnx"
    """onnx, torch for a torch.export program (.pt2), or diffusers."""
    steps: int | None = None
    """Network calls an image; a student's own step counts only. None: 1; diffusers: those of the model itself."""
    batch_size: int | None = None
    """onnx, torch: a fixed batch size; none: any."""
    output_type: str = "float"
    """onnx, torch: float: (B, C, H, W) in [-1, 1]; uint8: (B, H, W, C) pixels."""
    clip: float | None = None
    """onnx, torch: bound of |x| at each step; none: as plain diffusers samples."""
    guidance_scale: float | None = None
    """For a student that takes one: the scale that is fixed in the weights, as diffusers counts it (1: none)."""
    opset: int | None = None
    """onnx: version of the operators; none: torch's choice."""
    device: str | None = None
    """torch: cpu or cuda, where the program will run; none: cpu."""
    dtype: str = "float32"
    """diffusers: float32 or float16, of the weights."""
    verify: bool = True
    """diffusers: compare its images with progdistill's, if it is installed."""
    repo_id: str | None = None
    """diffusers: the model's name on the Hugging Face hub, for its card; nothing is uploaded."""
    tolerance: float | None = None
    """Largest deviation from progdistill's own images. None: 1e-3 in their range [-1, 1]; diffusers: 1e-5 (float16:
    1e-2) in [0, 1]."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(ExportConfig, arguments, "export")
    if config.format not in FORMATS:
        raise ValueError(f"unknown format {config.format!r}; use one of {', '.join(FORMATS)}")
    write, own = FORMATS[config.format]
    defaults = {field.name: field.default for field in dataclasses.fields(ExportConfig)}
    for name in sorted({name for _, names in FORMATS.values() for name in names} - set(own)):
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')} means nothing to --format {config.format}; leave it out")
    model = load(config.model, device=config.device)
    if config.guidance_scale is not None:
        if config.steps is not None or config.format != "diffusers":
            model = student_for(model, _steps(config))
        model = baked_guidance(model, config.guidance_scale)
    print(write(model, config))


def _onnx(model: Denoiser, config: ExportConfig) -> str:
    steps = _steps(config)
    return _report(export_onnx(model, steps, config.output, opset=config.opset, **_common(config)), config)


def _torch(model: Denoiser, config: ExportConfig) -> str:
    return _report(export_program(model, _steps(config), config.output, **_common(config)), config)


def _diffusers(model: Denoiser, config: ExportConfig) -> str:
    if config.dtype not in _DTYPES:
        raise ValueError(f"dtype is {config.dtype!r}; use one of {', '.join(_DTYPES)}")
    student = model if config.steps is None else student_for(model, config.steps)
    if student.step_conditioned and config.steps is not None:
        student = baked_step_count(student, config.steps)
    exported = export_diffusers(
        student,
        config.output,
        dtype=_DTYPES[config.dtype],
        verify=config.verify,
        tolerance=config.tolerance,
        repo_id=config.repo_id,
    )
    checked = "images not compared"
    if exported.deviations is not None:
        steps = ", ".join(map(str, exported.deviations))
        worst = max(exported.deviations.values())
        checked = f"its images ({steps} steps) within {worst:.1e} of progdistill's"
    return f"diffusers pipeline in {exported.path}; {checked}"


def _steps(config: ExportConfig) -> int:
    return 1 if config.steps is None else config.steps


def _common(config: ExportConfig) -> dict:
    options = {name: getattr(config, name) for name in _GRAPH_OPTIONS}
    return {**options, "tolerance": TOLERANCE if config.tolerance is None else config.tolerance}


def _report(exported: Exported, config: ExportConfig) -> str:
    size = os.path.getsize(exported.path) / 2**20
    checked = "images not compared"
    if exported.difference is not None:
        checked = f"images within {exported.difference:.1e} of progdistill's"
    return f"{_steps(config)}-step sampler in {exported.path} ({size:.1f} MiB); {checked}"


_DTYPES = {"float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16}
_GRAPH_OPTIONS = ("batch_size", "clip", "output_type")
# What writes a format and says what it wrote, and the options that not all formats have.
FORMATS: dict[str, tuple[Callable[[Denoiser, ExportConfig], str], tuple[str, ...]]] = {
    "onnx": (_onnx, ("opset", *_GRAPH_OPTIONS)),
    "torch": (_torch, ("device", *_GRAPH_OPTIONS)),
    "diffusers": (_diffusers, ("dtype", "verify", "repo_id")),
}
