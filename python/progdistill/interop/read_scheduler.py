"""What a diffusers scheduler_config.json says of the network that it belongs to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from progdistill.core.schedules import TableSchedule
from progdistill.interop.folders import SCHEDULER, SCHEDULER_CONFIG, blaming, read_json

# Each of these samples on the noise levels that its betas give, by another rule for the step.
_READABLE = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)
_REASONS = {
    "ScoreSdeVeScheduler": "its noise is variance-exploding: wrap the network with progdistill.from_edm",
    "KarrasVeScheduler": "its noise is variance-exploding: wrap the network with progdistill.from_edm",
    "EDMEulerScheduler": "it preconditions the network: wrap it with progdistill.from_edm",
    "EDMDPMSolverMultistepScheduler": "it preconditions the network: wrap it with progdistill.from_edm",
    "CMStochasticIterativeScheduler": "a consistency model samples in few steps already and makes no teacher",
    "FlowMatchEulerDiscreteScheduler": "it is flow matching: wrap the network with progdistill.from_flow_matching",
    "FlowMatchHeunDiscreteScheduler": "it is flow matching: wrap the network with progdistill.from_flow_matching",
}
_MOST_LEVELS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise that a network was trained with, and what it predicts."""

    schedule: TableSchedule
    prediction_type: str
    learned_variance: bool
    """Whether the second half of the network's channels is the variance of a stochastic step, as in DDPM."""


def read_scheduler(folder: Path) -> Noise:
    """The noise of the diffusers model in a folder, by its sub-folder, its top, or the sub-folder beside it (where a
    training script keeps the one that all its checkpoints share).

    Raises:
        FileNotFoundError: none of them is there.
        ValueError: a scheduler whose noise levels are not known here; what it does not define.
    """
    files = (
        folder / SCHEDULER / SCHEDULER_CONFIG,
        folder / SCHEDULER_CONFIG,
        folder.parent / SCHEDULER / SCHEDULER_CONFIG,
    )
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"the model in {folder} has no scheduler: looked for {', '.join(map(str, files))}. Add the one it was "
            "trained with: DDPMScheduler(...).save_pretrained(...)"
        )
    return noise_of(read_json(file), file)


def noise_of(config: dict[str, Any], file: Path) -> Noise:
    """The noise of a diffusers scheduler_config.json that was read from `file`.

    Raises ValueError for schedulers whose noise levels are not known here and for what they do not define.
    """
    with blaming(file, "write a DDIMScheduler's configuration with the betas that the network was trained with"):
        name = config.get("_class_name")
        if name not in _READABLE:
            reason = _REASONS.get(name) if isinstance(name, str) else None
            raise ValueError(f"the scheduler is {name!r}; {reason or f'{_listed(_READABLE)} can be read'}")
        count = config.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= _MOST_LEVELS:
            raise ValueError(f"num_train_timesteps is {count!r}; use an integer from 2 to {_MOST_LEVELS}")
        betas = config.get("trained_betas")
        if betas is not None and len(betas) != count:
            raise ValueError(f"trained_betas has {len(betas)} values, num_train_timesteps is {count}")
        if config.get("use_flow_sigmas"):
            raise ValueError("use_flow_sigmas is set; wrap the network with progdistill.from_flow_matching")
        if config.get("thresholding"):
            raise ValueError(
                "thresholding is set: dynamic thresholding depends on all pixels of an image at once, and a student "
                "cannot be held to a step like that; set it to false if the network samples well without"
            )
        return Noise(
            TableSchedule.from_diffusers(config),
            _prediction_type(config),
            config.get("variance_type") in ("learned", "learned_range"),
        )


def _prediction_type(config: dict[str, Any]) -> str:
    # Before diffusers 0.10 a boolean said it.
    default = "sample" if config.get("predict_epsilon") is False else "epsilon"
    prediction_type = config.get("prediction_type", default)
    if prediction_type not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"prediction_type is {prediction_type!r}; use epsilon, sample or v_prediction")
    return prediction_type


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
