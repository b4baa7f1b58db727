"""Loading a model: a folder of ours, or one that diffusers saved."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from progdistill.core.denoiser import Denoiser
from progdistill.core.schedules import TableSchedule
from progdistill.core.time_map import TimeMap
from progdistill.interop.folders import (
    MANIFEST,
    SCHEDULER,
    SCHEDULER_CONFIG,
    UNET,
    UNET_CONFIG,
    UNET_RAW,
    WEIGHTS,
    blaming,
    interrupted_replacements,
    read_json,
)
from progdistill.interop.manifest import check_fits, image_size, read_manifest
from progdistill.interop.scheduler_config import schedule_from_config
from progdistill.interop.weights import load_unet
from progdistill.nets.config import UNetConfig

_WEIGHTS_FOLDERS = {"ema": UNET, "raw": UNET_RAW}
_RUN_MODEL = "model"


def load(
    path_or_hub_id: str | os.PathLike[str], *, device: torch.device | str | None = None, weights: str = "ema"
) -> Denoiser:
    """The model in a folder, in evaluation mode, float32.

    Args:
        path_or_hub_id: a folder that `save` wrote, a run's folder with such a folder `model` inside, or a folder of
            diffusers: a UNet2DModel and a DDPM or DDIM scheduler, in sub-folders `unet` and `scheduler` or together at
            the top. A model on the Hugging Face hub is downloaded first, with its own tool.
        device: where to put the network, default the CPU.
        weights: "ema", or "raw" for the weights before averaging, if they were saved.

    A diffusers model keeps the time input that it was trained with, whatever grid it is sampled on. Students for other
    step counts that a folder of ours names, and that are there, are in `denoiser.students`.

    Raises:
        FileNotFoundError: no model there; the message lists what was looked for.
        ValueError: a damaged or foreign file, an architecture that is not supported, weights that do not fit; the
            message names the file and what to do.
    """
    if weights not in _WEIGHTS_FOLDERS:
        raise ValueError(f"weights is {weights!r}; use one of {', '.join(map(repr, _WEIGHTS_FOLDERS))}")
    folder = Path(path_or_hub_id).expanduser()
    for candidate in (folder, folder / _RUN_MODEL):
        if (candidate / MANIFEST).is_file():
            return _load_own(candidate, device, weights)
    for unet in (folder / UNET, folder):
        if (unet / UNET_CONFIG).is_file():
            return _load_diffusers(folder, unet, device, weights)
    raise _not_found(path_or_hub_id, folder)


def _load_own(folder: Path, device: torch.device | str | None, weights: str) -> Denoiser:
    description, students = read_manifest(folder)
    config = _read_unet_config(folder / UNET / UNET_CONFIG)
    with blaming(folder / MANIFEST, f"it contradicts {UNET}/{UNET_CONFIG}: restore both from the same model"):
        check_fits(config, description["sample_shape"], description["prediction_type"], description["num_classes"])
        if config.sample_size != image_size(description["sample_shape"]):
            raise ValueError(f"sample_shape is {description['sample_shape']}, sample_size is {config.sample_size}")
    file = folder / _WEIGHTS_FOLDERS[weights] / WEIGHTS
    if weights == "raw" and not file.parent.is_dir():
        raise FileNotFoundError(f"{folder} was saved without weights before averaging ({UNET_RAW}/); use weights='ema'")
    denoiser = Denoiser(load_unet(config, file), **description).to(device).eval()
    for steps, relative in students.items():
        if (folder / relative / MANIFEST).is_file():
            denoiser.students[steps] = partial(load, folder / relative, device=device, weights=weights)
    return denoiser


def _load_diffusers(folder: Path, unet: Path, device: torch.device | str | None, weights: str) -> Denoiser:
    if weights != "ema":
        raise ValueError(f"{folder} is a diffusers folder, with one set of weights; leave out weights={weights!r}")
    config = _read_unet_config(unet / UNET_CONFIG)
    schedule, prediction_type = _read_scheduler(folder)
    with blaming(unet / UNET_CONFIG, "this network cannot be used as a model here"):
        if config.sample_size is None:
            raise ValueError("sample_size is missing; write the image size that the network was trained for")
        if config.class_embed_type is not None:
            raise ValueError(f"class_embed_type is {config.class_embed_type!r}; only num_class_embeds is supported")
        size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
        sample_shape = (config.in_channels, *size)
        check_fits(config, sample_shape, prediction_type, config.num_class_embeds)
    last = len(schedule.alphas_cumprod) - 1
    return (
        Denoiser(
            load_unet(config, unet / WEIGHTS),
            sample_shape=sample_shape,
            schedule=schedule,
            prediction_type=prediction_type,
            time_map=TimeMap(schedule, scale=float(last + 1), offset=-1.0, minimum=0.0, maximum=float(last)),
            num_classes=config.num_class_embeds,
            provenance={"source": str(folder)},
        )
        .to(device)
        .eval()
    )


def _read_unet_config(file: Path) -> UNetConfig:
    values = read_json(file)
    with blaming(file, "only diffusers' UNet2DModel without these variants can be loaded"):
        name = values.get("_class_name", "UNet2DModel")
        if name != "UNet2DModel":
            raise ValueError(f"the network is a {name}")
        return UNetConfig.from_dict(values)


def _read_scheduler(folder: Path) -> tuple[TableSchedule, str]:
    files = (folder / SCHEDULER / SCHEDULER_CONFIG, folder / SCHEDULER_CONFIG)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"the model in {folder} has no scheduler: looked for {files[0]} and {files[1]}. Add the one it was trained "
            "with: DDPMScheduler(...).save_pretrained(...)"
        )
    return schedule_from_config(read_json(file), file)


def _not_found(given: str | os.PathLike[str], folder: Path) -> FileNotFoundError:
    places = [
        folder / MANIFEST,
        folder / _RUN_MODEL / MANIFEST,
        folder / UNET / UNET_CONFIG,
        folder / UNET_CONFIG,
    ]
    message = f"no model in {os.fspath(given)!r}: looked for {', '.join(map(str, places))}."
    left = interrupted_replacements(folder)
    if left:
        message += f" A save that was interrupted left the model in {left[-1].parent}: rename that folder to {folder}."
    elif not folder.exists():
        message += (
            " A model on the Hugging Face hub must be downloaded first (`hf download ID --local-dir FOLDER`, formerly "
            "`huggingface-cli download`); then pass the local folder."
        )
    elif not folder.is_dir():
        message += " That is a file: pass the folder it is in."
    return FileNotFoundError(message)
