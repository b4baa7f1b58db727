"""When plain diffusers draws the images that we draw, and in how many steps."""

from __future__ import annotations

import math

from progdistill.core.denoiser import Denoiser
from progdistill.interop.baking import with_time_table
from progdistill.interop.ddim_config import LEVELS, level_count, starts_at_zero_snr
from progdistill.nets.config import UNetConfig


def diffusers_obstacle(denoiser: Denoiser, config: UNetConfig) -> str | None:
    """Why plain diffusers cannot reproduce the model as it is, or None if it can.

    diffusers knows one output head, its own time input (the level's number) and a fixed list of levels.
    """
    count = level_count(denoiser)
    if denoiser.step_conditioned:
        return (
            "its network is told the number of steps, which diffusers passes to none; `progdistill export --format "
            "diffusers --steps N` writes one of them into the weights"
        )
    if denoiser.sampling_plans:
        return (
            "it was fine-tuned for steps of its own, which are not those of its schedule or begin with one that calls "
            "no network; `progdistill sfd --grid trailing --no-analytic-first-step` makes students without"
        )
    if denoiser.prediction_type == "sample_epsilon":
        return (
            "diffusers knows no two-headed networks; `progdistill convert --teacher FOLDER --output-dir RUN` makes a "
            "v_prediction student of the same step counts of it"
        )
    unreachable = [steps for steps in denoiser.valid_steps or () if count % steps]
    if unreachable:
        return (
            f"diffusers' time grid of {', '.join(map(str, unreachable))} steps is another one: {count} is no multiple"
        )
    if denoiser.guidance_range is not None:
        low, high = denoiser.guidance_range
        return (
            f"the network takes a guidance scale ({low:g} to {high:g}), which diffusers passes to none; "
            "`progdistill export --format diffusers --guidance-scale S` writes one of them into the weights"
        )
    if not _passes_level_numbers(denoiser, count):
        return (
            f"the network's time input is not {count} t - 1 on the model's own schedule, which diffusers passes, and "
            "its own table of times has no rows for these levels"
        )
    if denoiser.prediction_type == "epsilon" and starts_at_zero_snr(denoiser):
        return "an epsilon prediction says nothing at SNR 0, where the schedule starts; use v_prediction"
    if denoiser.num_classes is not None:
        if config.class_embed_type is not None:
            return f"diffusers' pipelines pass no labels to class_embed_type={config.class_embed_type!r}"
        if denoiser.sample_shape[1] != denoiser.sample_shape[2]:
            return "diffusers' class-conditional pipeline makes square images only"
    return None


def for_diffusers(denoiser: Denoiser) -> Denoiser:
    """The model itself if diffusers passes its network the right times, else the same model with a table of them.

    Raises ValueError for a network whose own table has no rows for the levels, see `with_time_table`.
    """
    count = _reachable_count(denoiser)
    if count == level_count(denoiser) and _passes_level_numbers(denoiser, count):
        return denoiser
    return with_time_table(denoiser, count)


def _reachable_count(denoiser: Denoiser) -> int:
    """The model's own number of levels if its step counts divide it, else as many as they do divide, 1024 at most."""
    count, common = level_count(denoiser), math.lcm(*(denoiser.valid_steps or ()))
    return count if count % common == 0 or common > LEVELS else LEVELS // common * common


def _passes_level_numbers(denoiser: Denoiser, count: int) -> bool:
    time = denoiser.time_map
    return (
        time.schedule == denoiser.schedule
        and (time.scale, time.offset) == (count, -1)
        and (time.minimum is None or time.minimum <= 0)
        and (time.maximum is None or time.maximum >= count - 1)
    )
