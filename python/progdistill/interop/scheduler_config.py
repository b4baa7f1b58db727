"""Reading a diffusers scheduler_config.json as a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from progdistill.core.schedules import TableSchedule
from progdistill.interop.folders import blaming

_READABLE = ("DDPMScheduler", "DDIMScheduler")
_MOST_LEVELS = 1_000_000


def schedule_from_config(config: dict[str, Any], file: Path) -> tuple[TableSchedule, str]:
    """(schedule, prediction type) of a diffusers scheduler_config.json that was read from `file`.

    Raises ValueError for schedulers other than DDPM and DDIM and for what they do not define.
    """
    with blaming(file, "write a DDIMScheduler's configuration with the betas that the network was trained with"):
        name = config.get("_class_name")
        if name not in _READABLE:
            raise ValueError(f"the scheduler is {name!r}; {' and '.join(_READABLE)} can be read")
        count = config.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or not 2 <= count <= _MOST_LEVELS:
            raise ValueError(f"num_train_timesteps is {count!r}; use an integer from 2 to {_MOST_LEVELS}")
        betas = config.get("trained_betas")
        if betas is not None and len(betas) != count:
            raise ValueError(f"trained_betas has {len(betas)} values, num_train_timesteps is {count}")
        # Before diffusers 0.10 a boolean said it.
        default = "sample" if config.get("predict_epsilon") is False else "epsilon"
        prediction_type = config.get("prediction_type", default)
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"prediction_type is {prediction_type!r}; use epsilon, sample or v_prediction")
        return TableSchedule.from_diffusers(config), prediction_type
