"""`progdistill export`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from progdistill.cli.arguments import parse
from progdistill.core import Denoiser
from progdistill.interop import load
from progdistill.sampling import Exported, export_onnx, export_program
from progdistill.sampling.exported import TOLERANCE


@dataclasses.dataclass(kw_only=True)
class ExportConfig:
    """Write the N-step sampler as one graph, noise in and images out, that runs without progdistill."""

    model: str
    """A model's folder, or its id on the Hugging Face hub."""
    output: str
    """The file to write."""
    format: str = "onnx"
    """onnx, or torch for a torch.export program (.pt2)."""
    steps: int = 1
    """Network calls an image; a student's own step counts only."""
    batch_size: int | None = None
    """A fixed batch size; none: any."""
    output_type: str = "float"
    """float: (B, C, H, W) in [-1, 1]; uint8: (B, H, W, C) pixels."""
    clip: float | None = None
    """Bound of |x| at each step; none: as plain diffusers samples."""
    opset: int | None = None
    """onnx: version of the operators; none: torch's choice."""
    device: str | None = None
    """torch: cpu or cuda, where the program will run; none: cpu."""
    tolerance: float = TOLERANCE
    """Largest deviation of the file's images from progdistill's own, in their range [-1, 1]."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(ExportConfig, arguments, "export")
    if config.format not in FORMATS:
        raise ValueError(f"unknown format {config.format!r}; use one of {', '.join(FORMATS)}")
    write, own = FORMATS[config.format]
    for name in {name for _, names in FORMATS.values() for name in names} - set(own):
        if getattr(config, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} means nothing to --format {config.format}; leave it out")
    print(write(load(config.model, device=config.device), config))


def _onnx(model: Denoiser, config: ExportConfig) -> str:
    return _report(export_onnx(model, config.steps, config.output, opset=config.opset, **_common(config)), config)


def _torch(model: Denoiser, config: ExportConfig) -> str:
    return _report(export_program(model, config.steps, config.output, **_common(config)), config)


def _common(config: ExportConfig) -> dict:
    return {name: getattr(config, name) for name in ("batch_size", "clip", "output_type", "tolerance")}


def _report(exported: Exported, config: ExportConfig) -> str:
    size = os.path.getsize(exported.path) / 2**20
    checked = "images not compared"
    if exported.difference is not None:
        checked = f"images within {exported.difference:.1e} of progdistill's"
    return f"{config.steps}-step sampler in {exported.path} ({size:.1f} MiB); {checked}"


# What writes a format and says what it wrote, and the options that are its own.
FORMATS: dict[str, tuple[Callable[[Denoiser, ExportConfig], str], tuple[str, ...]]] = {
    "onnx": (_onnx, ("opset",)),
    "torch": (_torch, ("device",)),
}
