"""Saving a model as a diffusers pipeline folder, without needing diffusers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill.core.denoiser import Denoiser
from progdistill.core.files import write_json_atomic, write_text_atomic
from progdistill.interop.ddim_config import ddim_config
from progdistill.interop.folders import (
    MANIFEST,
    MODEL_CARD,
    MODEL_INDEX,
    SCHEDULER,
    SCHEDULER_CONFIG,
    UNET,
    UNET_CONFIG,
    UNET_RAW,
    WEIGHTS,
    replace_folder,
)
from progdistill.interop.manifest import FITTED, check_fits, image_size, manifest_of
from progdistill.interop.model_card import model_card
from progdistill.interop.own_time import TABLE, as_stored, own_time_of
from progdistill.interop.plain_diffusers import diffusers_obstacle
from progdistill.interop.weights import check_shapes, shapes_of, write_weights
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet


def save(
    denoiser: Denoiser,
    path: str | os.PathLike[str],
    *,
    raw_state_dict: Mapping[str, Tensor] | None = None,
    students: Mapping[int, str | os.PathLike[str]] | None = None,
) -> Path:
    """Writes a model folder: unet/, scheduler/, progdistill.json, README.md, and model_index.json if plain diffusers
    will do.

    With model_index.json, `DiffusionPipeline.from_pretrained(path)(num_inference_steps=N)` draws the same images as
    this package for every valid N. A network whose time input is not what diffusers passes is stored with a table of
    its times, which `load` replaces by what it stands for (see `own_time`). Where diffusers would sample wrongly all
    the same, model_index.json is left out, so that it refuses, and progdistill.json says why under "diffusers".
    README.md is a model card; one that somebody has made their own stays.

    Args:
        denoiser: its network must be a `progdistill.nets.unet.UNet`. Weights are written as float32.
        path: the folder to write. A model folder that is there is replaced once the new one is complete.
        raw_state_dict: the weights before averaging, kept beside as unet_raw/.
        students: for other step counts, the folders of their models relative to `path`.

    Returns:
        The folder.

    Raises:
        ValueError: another kind of network, or one that the denoiser's description does not fit; weights in
            `raw_state_dict` that are not this network's; an absolute path in `students`.
        TypeError: provenance that JSON cannot hold.
        FileExistsError: `path` is there and is no model folder.
        OSError: the disk refused; whatever was at `path` before is still there.
    """
    config_of(denoiser)  # refuses other networks
    if raw_state_dict is not None:
        check_shapes(shapes_of(raw_state_dict), shapes_of(denoiser.network.state_dict()), "raw_state_dict")
    stored = as_stored(denoiser)
    config, own_time = config_of(stored), own_time_of(denoiser, stored)
    obstacle = diffusers_obstacle(stored, config)
    manifest = manifest_of(stored, students, obstacle, own_time)
    card = model_card(stored, obstacle)
    with replace_folder(path) as folder:
        write_model(folder, stored, config)
        if raw_state_dict is not None:
            table = {} if own_time is None else {TABLE: stored.network.state_dict()[TABLE]}
            write_weights({**raw_state_dict, **table}, folder / UNET_RAW / WEIGHTS)
        if obstacle is None:
            write_json_atomic(folder / MODEL_INDEX, model_index(stored))
        write_text_atomic(folder / MODEL_CARD, card)
        write_json_atomic(folder / MANIFEST, manifest)
    return Path(path)


def write_model(folder: Path, denoiser: Denoiser, config: UNetConfig, dtype: torch.dtype = torch.float32) -> None:
    """Writes unet/ and scheduler/."""
    write_weights(denoiser.network.state_dict(), folder / UNET / WEIGHTS, dtype)
    write_json_atomic(folder / UNET / UNET_CONFIG, config.to_dict())
    write_json_atomic(folder / SCHEDULER / SCHEDULER_CONFIG, ddim_config(denoiser))


def config_of(denoiser: Denoiser) -> UNetConfig:
    """The configuration of the model's U-Net, with the size of its images.

    Raises ValueError for another kind of network, or one that the denoiser's description does not fit.
    """
    network = denoiser.network
    if not isinstance(network, UNet):
        raise ValueError(
            f"only a progdistill.nets.unet.UNet can be saved as a model folder, this network is a "
            f"{type(network).__name__}. If it wraps one, save denoiser.with_network(network.module) "
            "(DistributedDataParallel) or denoiser.with_network(network._orig_mod) (torch.compile); of any other, keep "
            "the state_dict() in a safetensors file of your own (EDM's preconditioning and the like, which scale what "
            "goes in and out of a network, are beyond a UNet2DModel)"
        )
    check_fits(network.config, **{name: getattr(denoiser, name) for name in FITTED})
    return dataclasses.replace(network.config, sample_size=image_size(denoiser.sample_shape))


def model_index(denoiser: Denoiser) -> dict[str, Any]:
    """The content of model_index.json."""
    # DDIMPipeline passes no class labels; this one does, and takes any scheduler.
    pipeline = "DDIMPipeline" if denoiser.num_classes is None else "ConsistencyModelPipeline"
    return {
        "_class_name": pipeline,
        "_diffusers_version": "0.24.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
