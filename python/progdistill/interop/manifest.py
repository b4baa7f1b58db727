"""progdistill.json: what diffusers' own files do not say about a model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch

from progdistill import __version__
from progdistill.core.denoiser import Denoiser
from progdistill.core.sampling_plan import SamplingPlan
from progdistill.core.schedules import schedule_from_dict
from progdistill.core.time_map import TimeMap
from progdistill.interop.folders import MANIFEST, blaming, read_json
from progdistill.nets.config import UNetConfig
from progdistill.ops.names import canonical_prediction_type, heads

FORMAT_VERSION = 1
# What of a Denoiser `check_fits` holds against the network.
FITTED = ("sample_shape", "prediction_type", "num_classes", "unconditional_label", "guidance_range")


def manifest_of(
    denoiser: Denoiser,
    students: Mapping[int, str | os.PathLike[str]] | None,
    obstacle: str | None,
    own_time: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of progdistill.json.

    `students`: the folder of the student for each other step count, relative to the model's; `obstacle`: why plain
    diffusers cannot load the model; `own_time`: what its network is told about time where a table of times is stored
    instead. Raises ValueError for step counts below 1 and absolute paths.
    """
    return {
        "format_version": FORMAT_VERSION,
        "progdistill_version": __version__,
        "prediction_type": denoiser.prediction_type,
        "schedule": denoiser.schedule.to_dict(),
        "time_map": denoiser.time_map.to_dict(),
        "sample_shape": list(denoiser.sample_shape),
        "num_classes": denoiser.num_classes,
        "unconditional_label": denoiser.unconditional_label,
        "guidance_range": None if denoiser.guidance_range is None else list(denoiser.guidance_range),
        "valid_steps": None if denoiser.valid_steps is None else list(denoiser.valid_steps),
        "students": {str(steps): _relative(steps, path) for steps, path in (students or {}).items()},
        **({"sampling_plans": _described(denoiser.sampling_plans)} if denoiser.sampling_plans else {}),
        "provenance": denoiser.provenance,
        "diffusers": {"loadable": obstacle is None, "reason": obstacle},
        **({} if own_time is None else {"own_time": own_time}),
    }


def read_manifest(folder: Path) -> tuple[dict[str, Any], dict[int, str], dict[str, Any] | None]:
    """(what `Denoiser` takes beside the network, the students' relative folders by step count, "own_time" or None).

    Raises ValueError, naming the file, for a format of the future and for missing or impossible fields.
    """
    file = folder / MANIFEST
    values = read_json(file)
    with blaming(file, "restore the file, or save the model again"):
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {version!r}, this progdistill ({__version__}) reads {FORMAT_VERSION}: upgrade it "
                f"if the model comes from a newer one (it was written by {values.get('progdistill_version')!r})"
            )
        schedule, time_map = schedule_from_dict(values["schedule"]), TimeMap.from_dict(values["time_map"])
        # Computes with every number in them, and so refuses what is none.
        time_map(schedule.angle(torch.linspace(0, 1, 3, dtype=torch.float64)))
        description = {
            "schedule": schedule,
            "time_map": time_map,
            "prediction_type": canonical_prediction_type(values["prediction_type"]),
            "sample_shape": tuple(_positive("sample_shape", size) for size in values["sample_shape"]),
            "num_classes": _optional("num_classes", values["num_classes"]),
            # Absent from models of before there was guidance.
            "unconditional_label": _label(values.get("unconditional_label")),
            "guidance_range": _range(values.get("guidance_range")),
            "valid_steps": _steps(values["valid_steps"]),
            "sampling_plans": _plans(values.get("sampling_plans", {})),
            "provenance": dict(values["provenance"]),
        }
        students = {int(steps): _relative(int(steps), path) for steps, path in values["students"].items()}
    return description, students, values.get("own_time")


def image_size(sample_shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """The `sample_size` of a U-Net's configuration for samples (C, H, W): from it diffusers takes what it draws."""
    _, height, width = sample_shape
    return height if height == width else (height, width)


def check_fits(
    config: UNetConfig,
    sample_shape: tuple[int, ...],
    prediction_type: str,
    num_classes: int | None,
    unconditional_label: int | None = None,
    guidance_range: tuple[float, float] | None = None,
) -> None:
    """Raises ValueError if the network cannot be what the description says of it."""
    if len(sample_shape) != 3 or config.in_channels != sample_shape[0]:
        raise ValueError(
            f"the network takes {config.in_channels} channels, samples have shape {sample_shape}: it must be "
            f"({config.in_channels}, height, width)"
        )
    expected = heads(prediction_type) * sample_shape[0]
    if config.out_channels != expected:
        raise ValueError(
            f"the network has out_channels = {config.out_channels}, prediction type {prediction_type!r} on "
            f"{sample_shape[0]} channels needs {expected} (a learned variance is not supported)"
        )
    conditional = config.class_embed_type is not None or config.num_class_embeds is not None
    if conditional != (num_classes is not None):
        raise ValueError(
            f"num_classes is {num_classes}, but the network has class_embed_type = {config.class_embed_type!r} and "
            f"num_class_embeds = {config.num_class_embeds}: either both or neither know classes"
        )
    if config.class_embed_type is None and conditional and num_classes > config.num_class_embeds:
        raise ValueError(f"num_classes is {num_classes}, the network's num_class_embeds only {config.num_class_embeds}")
    if (
        unconditional_label is not None
        and config.class_embed_type is None
        and (unconditional_label >= (config.num_class_embeds or 0))
    ):
        raise ValueError(
            f"unconditional_label is {unconditional_label}, the network's num_class_embeds {config.num_class_embeds}: "
            "it must be one of them"
        )
    if (guidance_range is None) != (config.guidance_embed_dim is None):
        raise ValueError(
            f"guidance_range is {guidance_range}, but the network has guidance_embed_dim = "
            f"{config.guidance_embed_dim}: either both or neither know a guidance scale"
        )


def _relative(steps: int, path: str | os.PathLike[str]) -> str:
    _positive("a student's step count", steps)
    if PurePath(path).is_absolute():
        raise ValueError(f"the student for {steps} steps is at {path}; give its folder relative to the model's")
    return PurePath(path).as_posix()


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; use an integer of at least 1")
    return value


def _range(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = map(float, value)
    if not 1 <= low <= high < math.inf:
        raise ValueError(f"guidance_range is {value!r}; use null or [lowest, highest], both at least 1")
    return low, high


def _label(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"unconditional_label is {value!r}; use null or a label, 0 or more")
    return value


def _optional(name: str, value: object) -> int | None:
    return None if value is None else _positive(name, value)


def _steps(values: object) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f"valid_steps is {values!r}; use null or a list of step counts")
    return tuple(_positive("valid_steps", value) for value in values)


def _described(plans: Mapping[int, SamplingPlan]) -> dict[str, Any]:
    return {str(steps): plan.to_dict() for steps, plan in plans.items()}


def _plans(values: Mapping[str, Any]) -> dict[int, SamplingPlan]:
    plans = {int(steps): SamplingPlan.from_dict(value) for steps, value in values.items()}
    for steps, plan in plans.items():
        if plan.network_calls != steps:
            raise ValueError(f"the sampling plan for {steps} steps has {plan.network_calls} that call the network")
    return plans
