"""Networks with conditions that are fixed when they leave written into their time path, for plain diffusers' sake."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from progdistill.core.denoiser import Denoiser
from progdistill.core.time_map import TimeMap
from progdistill.nets.unet import UNet

_WHOLE = 1e-3


@torch.no_grad()
def with_time_table(denoiser: Denoiser, levels: int) -> Denoiser:
    """The same model with a table of `levels` rows for its time map: row i is what the network makes of level i's time.

    Level i is time (i + 1) / levels of the model's schedule. The new network's time input is the number of the row,
    which is what diffusers passes, and its output at every level is the old one's. It shares the other weights with
    the old one.

    Raises ValueError for a network that has a table of its own and whose times at the levels are no rows of it.
    """
    network = denoiser.network
    times = denoiser.time_map(denoiser.schedule.angle(torch.arange(1, levels + 1, dtype=torch.float64) / levels))
    if network.config.time_embedding_type == "learned":
        times = _rows(times, network.config.num_train_timesteps)
    rows = network.time_proj(times.to(denoiser.device))
    baked = _rebuilt(network, {"time_proj.weight": rows}, time_embedding_type="learned", num_train_timesteps=levels)
    return denoiser.with_network(baked, time_map=TimeMap(denoiser.schedule, scale=float(levels), offset=-1.0))


@torch.no_grad()
def with_added_embedding(network: UNet, embedding: Tensor, **changes: Any) -> UNet:
    """The same network with a constant added to its time embedding, (time_embed_dim,), as part of a bias.

    For conditions that are embedded and added to the time's, as a guidance scale or a number of steps, once they are
    fixed. `changes`: fields of the configuration, to build a network without what embedded the condition; its weights
    are left out. The others are shared with the old network.

    Raises ValueError for another shape.
    """
    width = network.config.time_embed_dim
    if embedding.shape != (width,):
        raise ValueError(f"the embedding has shape {tuple(embedding.shape)}; this network's time embedding ({width},)")
    bias = network.time_embedding.linear_2.bias
    added = (bias.double() + embedding.to(bias.device).double()).to(bias.dtype)
    return _rebuilt(network, {"time_embedding.linear_2.bias": added}, **changes)


@torch.no_grad()
def baked_guidance(denoiser: Denoiser, guidance_scale: float) -> Denoiser:
    """A model that was distilled with guidance, at one scale for good: it is told none, and shares all other weights.

    Raises ValueError for a model that takes no scale, and for a scale outside of its range.
    """
    if denoiser.guidance_range is None:
        how = "cannot be guided" if denoiser.unconditional_label is None else "is guided by two network calls a step"
        raise ValueError(
            f"guidance_scale is {guidance_scale:g}, but this model {how}; only a student that was distilled with a "
            "guidance_range (of a teacher that was trained with label_dropout) has a scale that can be fixed"
        )
    low, high = denoiser.guidance_range
    if not low <= guidance_scale <= high:
        raise ValueError(
            f"guidance_scale is {guidance_scale:g}; this model takes {low:g} to {high:g}, which it was distilled for"
        )
    network = denoiser.network
    if not isinstance(network, UNet):
        raise ValueError(
            f"only a progdistill.nets.unet.UNet can be given a fixed scale, not a {type(network).__name__}"
        )
    embedding = network.guidance_embedding(torch.tensor([guidance_scale - 1.0], device=denoiser.device))[0]
    baked = with_added_embedding(network, embedding, guidance_embed_dim=None)
    provenance = {**denoiser.provenance, "guidance_scale": float(guidance_scale)}
    return denoiser.with_network(baked, guidance_range=None, provenance=provenance)


@torch.no_grad()
def baked_step_count(denoiser: Denoiser, steps: int) -> Denoiser:
    """A student that is told the number of its steps, for one number for good: it is told none, and knows no other.

    All other weights are shared. Raises ValueError for a model that is told none, and for a count it does not know.
    """
    if not denoiser.step_conditioned:
        raise ValueError(f"steps is {steps}, but this model's network is told no number of steps that could be fixed")
    if denoiser.valid_steps is not None and steps not in denoiser.valid_steps:
        raise ValueError(f"steps is {steps}; this model was trained for {', '.join(map(str, denoiser.valid_steps))}")
    baked = with_added_embedding(
        denoiser.network, denoiser.network.step_embedding(steps).flatten(), step_embed_dim=None
    )
    plans = {count: plan for count, plan in denoiser.sampling_plans.items() if count == steps}
    return denoiser.with_network(
        baked, step_conditioned=False, step_count=None, valid_steps=(steps,), sampling_plans=plans
    )


def _rows(times: Tensor, count: int) -> Tensor:
    rows = times.round()
    wrong = times[((rows - times).abs() > _WHOLE) | (rows < 0) | (rows >= count)]
    if len(wrong):
        raise ValueError(
            f"the network's times are the rows 0 to {count - 1} of its own table, but the schedule has levels between "
            f"them ({float(wrong[0]):g}); export the model that the table was made of"
        )
    return rows.long()


def _rebuilt(network: UNet, replaced: dict[str, Tensor], **changes: Any) -> UNet:
    config, state = dataclasses.replace(network.config, **changes), {**network.state_dict(), **replaced}
    with torch.device("meta"):
        names = list(UNet(config).state_dict())
    return UNet.of_weights(config, {name: state[name] for name in names}).train(network.training)
