"""Models that diffusers saved: whichever layout, network and noise, or the reason why not."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progdistill.core.denoiser import Denoiser
from progdistill.core.time_map import TimeMap
from progdistill.interop.folders import MODEL_INDEX, UNET, UNET_CONFIG, blaming, read_json
from progdistill.interop.manifest import check_fits
from progdistill.interop.read_scheduler import Noise, read_scheduler
from progdistill.interop.stored_tensors import open_tensors
from progdistill.interop.weight_files import weight_files
from progdistill.interop.weights import unet_of, with_current_names, without_variance
from progdistill.nets.config import UNetConfig

UNET_EMA = "unet_ema"
# What diffusers' EMAModel adds to the configuration of the network that it saves.
_OF_THE_AVERAGE = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
_HARMLESS = ("scheduler", "unet")
_REASONS = {
    "vae": "it denoises the latents of an autoencoder, and progdistill works on images",
    "vqvae": "it denoises the latents of an autoencoder, and progdistill works on images",
    "movq": "it denoises the latents of an autoencoder, and progdistill works on images",
    "transformer": "its network is a transformer: wrap it as a callable, Denoiser(network, ...)",
    "text_encoder": "it is conditioned on text, and progdistill knows class labels",
    "bert": "it is conditioned on text, and progdistill knows class labels",
    "image_encoder": "it is conditioned on images, and progdistill knows class labels",
    "low_res_scheduler": "it is conditioned on small images, and progdistill knows class labels",
    "unet_2": "it has several networks",
    "prior": "it has several networks",
}


def network_folders(folder: Path) -> list[Path]:
    """Where a network of diffusers can be in a folder: averaged weights first, then the sub-folder, then the top."""
    places = (folder / UNET_EMA, folder / UNET, folder)
    return [place for place in places if (place / UNET_CONFIG).is_file()]


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder holds a model or a pipeline of diffusers."""
    return (folder / MODEL_INDEX).is_file() or bool(network_folders(folder))


def load_diffusers(
    folder: Path, *, weights: str = "ema", variant: str | None = None, provenance: Mapping[str, Any] | None = None
) -> Denoiser:
    """The model in a folder that diffusers wrote, float32, on the CPU, in evaluation mode.

    Args:
        folder: a pipeline or a training checkpoint (sub-folders `unet`, perhaps `unet_ema`, and `scheduler`), or a
            network with its scheduler's configuration beside it.
        weights: "ema" takes `unet_ema` where it is; "raw" takes the network beside it.
        variant: of the weights, as diffusers names it ("fp16").
        provenance: facts to keep with the model; default the folder.

    The time input is the network's own, the fractional level of equal logSNR held within the levels that it knows. Of
    a learned variance the mean's half is kept.

    Raises:
        FileNotFoundError: the network, its weights or its scheduler are not there.
        ValueError: what cannot be represented, with the reason; damaged files.

    Warns:
        UserWarning: averaged weights are taken while others are there.
    """
    check_pipeline(folder)
    places = network_folders(folder)
    if not places:
        raise FileNotFoundError(f"{folder / MODEL_INDEX} is there, but no network: looked for {folder / UNET}")
    facts = dict(provenance or {"source": str(folder)})
    place = _chosen(places, weights, facts)
    noise = read_scheduler(folder)
    config = read_unet_config(place / UNET_CONFIG)
    with blaming(place / UNET_CONFIG, "this network cannot be used as a model here"):
        kept, sample_shape = _described(config, noise)
    if kept is not config:
        facts["learned_variance"] = "left out"
    files = weight_files(place, variant)
    with open_tensors(files) as stored:
        tensors = with_current_names(stored)
        if kept is not config:
            tensors = without_variance(tensors, kept.out_channels)
        network = unet_of(kept, tensors, _named(files), str(place / UNET_CONFIG))
    last = len(noise.schedule.alphas_cumprod) - 1
    return Denoiser(
        network,
        sample_shape=sample_shape,
        schedule=noise.schedule,
        prediction_type=noise.prediction_type,
        time_map=TimeMap(noise.schedule, scale=float(last + 1), offset=-1.0, minimum=0.0, maximum=float(last)),
        num_classes=config.num_class_embeds,
        provenance=facts,
    ).eval()


def read_unet_config(file: Path) -> UNetConfig:
    """The configuration in a network's config.json. Raises ValueError for what is no supported UNet2DModel."""
    values = read_json(file)
    with blaming(file, "only diffusers' UNet2DModel without these variants can be loaded"):
        name = values.get("_class_name", "UNet2DModel")
        if name != "UNet2DModel":
            raise ValueError(f"the network is a {name}")
        if file.parent.name == UNET_EMA:
            values = {key: value for key, value in values.items() if key not in _OF_THE_AVERAGE}
        return UNetConfig.from_dict(values)


def check_pipeline(folder: Path) -> None:
    """Raises ValueError, with the reason, for pipelines of more than a network and a scheduler."""
    file = folder / MODEL_INDEX
    if not file.is_file():
        return
    index = read_json(file)
    parts = {
        name
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value not in ([], [None, None])
    }
    extra = sorted(parts.difference(_HARMLESS), key=lambda name: (name not in _REASONS, name))
    if extra:
        reason = _REASONS.get(extra[0], "only a UNet2DModel with its scheduler can be loaded")
        name = index.get("_class_name", "pipeline")
        raise ValueError(f"{file}: this {name} has the part {extra[0]!r}: {reason}")


def _chosen(places: list[Path], weights: str, facts: dict[str, Any]) -> Path:
    averaged = places[0].name == UNET_EMA
    if weights == "raw":
        if not averaged:
            raise ValueError(
                f"{places[0]} is a diffusers network with one set of weights; leave out weights={weights!r}"
            )
        if len(places) == 1:
            raise FileNotFoundError(f"{places[0]} holds averaged weights and there are no others; use weights='ema'")
        return places[1]
    if averaged:
        facts["weights"] = UNET_EMA
        if len(places) > 1:
            warnings.warn(
                f"{places[0]} holds averaged weights, which are taken; weights='raw' takes those in {places[1]}",
                stacklevel=4,
            )
    return places[0]


def _described(config: UNetConfig, noise: Noise) -> tuple[UNetConfig, tuple[int, ...]]:
    """(the configuration without a learned variance, the shape of a sample); ValueError for what is not supported."""
    if config.sample_size is None:
        raise ValueError("sample_size is missing; write the image size that the network was trained for")
    if config.class_embed_type is not None:
        raise ValueError(f"class_embed_type is {config.class_embed_type!r}; only num_class_embeds is supported")
    if config.out_channels == 2 * config.in_channels:
        if not noise.learned_variance:
            raise ValueError(
                f"the network has out_channels = {config.out_channels} for {config.in_channels} channels, and the "
                "scheduler does not say that the second half is a learned variance: write variance_type = "
                '"learned_range" into scheduler_config.json if it is'
            )
        config = dataclasses.replace(config, out_channels=config.in_channels)
    size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    sample_shape = (config.in_channels, *size)
    check_fits(config, sample_shape, noise.prediction_type, config.num_class_embeds)
    return config, sample_shape


def _named(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
