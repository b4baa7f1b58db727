"""What a network is told about time, kept beside the table that stands for it in a folder for plain diffusers.

diffusers tells a network the number of the level. A network that expects something else is stored with a table of
what its own sinusoids make of the levels, and `progdistill.json` says under "own_time" what they are: reading puts the
sinusoids back, so that the model is the saved one, to the bit and between the levels too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progdistill.core.denoiser import Denoiser
from progdistill.core.time_map import TimeMap
from progdistill.interop.folders import MANIFEST, UNET, UNET_CONFIG, blaming
from progdistill.interop.plain_diffusers import diffusers_obstacle, for_diffusers
from progdistill.nets.config import UNetConfig

TABLE = "time_proj.weight"


def as_stored(denoiser: Denoiser) -> Denoiser:
    """The model with a table of its times if that is what plain diffusers lacks, else the model itself.

    A network that has a table of its own keeps it.
    """
    config = denoiser.network.config
    if config.time_embedding_type == "learned" or diffusers_obstacle(denoiser, config) is None:
        return denoiser
    stored = for_diffusers(denoiser)
    return denoiser if diffusers_obstacle(stored, stored.network.config) is not None else stored


def own_time_of(denoiser: Denoiser, stored: Denoiser) -> dict[str, Any] | None:
    """The entry "own_time" of the manifest, JSON-ready: None if the stored model has the model's own times."""
    config = denoiser.network.config
    if config.time_embedding_type == stored.network.config.time_embedding_type:
        return None
    return {"time_map": denoiser.time_map.to_dict(), "num_train_timesteps": config.num_train_timesteps}


def with_own_time(
    own: dict[str, Any], folder: Path, config: UNetConfig, tensors: Mapping[str, Any]
) -> tuple[TimeMap, UNetConfig, dict[str, Any]]:
    """(time map, configuration, weights) of the model that was saved, of those that are stored in a folder.

    Raises ValueError for an entry that is none, or that does not belong to the network.
    """
    file = folder / MANIFEST
    with blaming(file, f'"own_time" does not belong to {UNET}/{UNET_CONFIG}: restore both from the same model'):
        if config.time_embedding_type != "learned":
            raise ValueError(f"the network's time_embedding_type is {config.time_embedding_type!r}, not 'learned'")
        count = own["num_train_timesteps"]
        config = dataclasses.replace(config, time_embedding_type="positional", num_train_timesteps=count)
        time_map = TimeMap.from_dict(own["time_map"])
        time_map(time_map.schedule.angle(0.5).reshape(1))
    return time_map, config, {name: tensor for name, tensor in tensors.items() if name != TABLE}
