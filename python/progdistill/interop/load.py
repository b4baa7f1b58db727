"""Loading a model: a folder of ours, one that diffusers saved, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from progdistill.core.denoiser import Denoiser
from progdistill.interop.diffusers_folder import UNET_EMA, is_diffusers_folder, load_diffusers, read_unet_config
from progdistill.interop.folders import (
    MANIFEST,
    UNET,
    UNET_CONFIG,
    UNET_RAW,
    blaming,
    interrupted_replacements,
)
from progdistill.interop.hub import download, hub_id
from progdistill.interop.manifest import FITTED, check_fits, image_size, read_manifest
from progdistill.interop.own_time import with_own_time
from progdistill.interop.stored_tensors import PICKLES, open_tensors
from progdistill.interop.weight_files import weight_files
from progdistill.interop.weights import unet_of

_WEIGHTS_FOLDERS = {"ema": UNET, "raw": UNET_RAW}
_RUN_MODEL = "model"
_LOADERS = "progdistill.load_guided_diffusion (OpenAI) or progdistill.load_salimans_ho (the paper's release)"


def load(
    path_or_hub_id: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    weights: str = "ema",
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Denoiser:
    """The model in a folder or on the Hugging Face hub, in evaluation mode, float32.

    Args:
        path_or_hub_id: a folder that `save` wrote, a run's folder with such a folder `model` inside, or a folder of
            diffusers: a UNet2DModel and a scheduler, in sub-folders `unet` (or `unet_ema`) and `scheduler` or together
            at the top. What is no path here is a hub id such as "google/ddpm-cifar10-32", perhaps with "@REVISION".
        device: where to put the network, default the CPU.
        weights: "ema", or "raw" for the weights before averaging, if both were saved: by us, or by diffusers' training
            scripts, which keep averaged weights in `unet_ema`.
        variant: of diffusers' weights, for files such as diffusion_pytorch_model.fp16.safetensors: "fp16".
        revision: a hub model's branch, tag or commit.
        cache_dir: where hub models are kept, default the cache of Hugging Face's tools (HF_HOME).
        local_files_only: take a hub model from the cache alone; so does HF_HUB_OFFLINE=1.

    A diffusers model keeps the time input that it was trained with, whatever grid it is sampled on; of a learned
    variance the mean is kept. Students for other step counts that a folder of ours names, and that are there, are in
    `denoiser.students`.

    Raises:
        FileNotFoundError: no model there, or no weights of that kind; the message lists what was looked for.
        ValueError: a damaged or foreign file, an architecture or a noise that is not supported, weights that do not
            fit; the message names the file and what to do.
    """
    if weights not in _WEIGHTS_FOLDERS:
        raise ValueError(f"weights is {weights!r}; use one of {', '.join(map(repr, _WEIGHTS_FOLDERS))}")
    folder, facts = Path(path_or_hub_id).expanduser(), None
    if folder.exists() or interrupted_replacements(folder):
        if revision is not None:
            raise ValueError(f"{path_or_hub_id} is a folder here and has no revision={revision!r}; leave it out")
    elif on_hub := hub_id(os.fspath(path_or_hub_id), revision):
        folder, facts = download(
            *on_hub, weights=weights, variant=variant, cache_dir=cache_dir, local_files_only=local_files_only
        )
    for candidate in (folder, folder / _RUN_MODEL):
        if (candidate / MANIFEST).is_file():
            if variant is not None:
                raise ValueError(f"{candidate} is a model of ours, without variants; leave out variant={variant!r}")
            return _load_own(candidate, weights, device)
    if is_diffusers_folder(folder):
        return load_diffusers(folder, weights=weights, variant=variant, provenance=facts).to(device)
    raise _not_found(path_or_hub_id, folder)


def _load_own(folder: Path, weights: str, device: torch.device | str | None) -> Denoiser:
    description, students, own_time = read_manifest(folder)
    config = read_unet_config(folder / UNET / UNET_CONFIG)
    with blaming(folder / MANIFEST, f"it contradicts {UNET}/{UNET_CONFIG}: restore both from the same model"):
        check_fits(config, **{name: description[name] for name in FITTED})
        if config.sample_size != image_size(description["sample_shape"]):
            raise ValueError(f"sample_shape is {description['sample_shape']}, sample_size is {config.sample_size}")
    place = folder / _WEIGHTS_FOLDERS[weights]
    if weights == "raw" and not place.is_dir():
        raise FileNotFoundError(f"{folder} was saved without weights before averaging ({UNET_RAW}/); use weights='ema'")
    files = weight_files(place)
    with open_tensors(files) as tensors:
        stored = tensors
        if own_time is not None:
            description["time_map"], config, stored = with_own_time(own_time, folder, config, tensors)
        network = unet_of(config, stored, str(files[0]), str(folder / UNET / UNET_CONFIG))
    told = config.step_embed_dim is not None
    denoiser = Denoiser(network, **description, step_conditioned=told).to(device).eval()
    for steps, relative in students.items():
        if (folder / relative / MANIFEST).is_file():
            denoiser.students[steps] = partial(load, folder / relative, device=device, weights=weights)
    return denoiser


def _not_found(given: str | os.PathLike[str], folder: Path) -> FileNotFoundError:
    places = [
        folder / MANIFEST,
        folder / _RUN_MODEL / MANIFEST,
        *(folder / name / UNET_CONFIG for name in (UNET, UNET_EMA)),
        folder / UNET_CONFIG,
    ]
    message = f"no model in {os.fspath(given)!r}: looked for {', '.join(map(str, places))}."
    left = interrupted_replacements(folder)
    if left:
        message += f" A save that was interrupted left the model in {left[-1].parent}: rename that folder to {folder}."
    elif folder.is_file() and folder.suffix in (*PICKLES, ".npz", ".safetensors"):
        message += f" That is a file of weights: pass the folder it is in, or use {_LOADERS}."
    elif folder.is_file():
        message += " That is a file: pass the folder it is in."
    elif not folder.exists():
        message += " There is no such folder. A model on the Hugging Face hub is named by its id, hf-hub:google/NAME."
    return FileNotFoundError(message)
