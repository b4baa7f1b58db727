"""What a trajectory fine-tuning starts from: the teacher's network, told the number of steps if there are several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from progdistill.core import Denoiser, SamplingPlan
from progdistill.nets.unet import UNet
from progdistill.training.round_state import copy_network
from progdistill.training.trajectory_grid import is_schedules_own


def few_step_student(teacher: Denoiser, plans: Mapping[int, SamplingPlan], seed: int = 0) -> Denoiser:
    """A copy of the teacher that samples along the plans, by step count, and says what the teacher says.

    `seed`: of the weights of an input for the step count, whose effect is zero at the start.

    Raises:
        ValueError: several step counts for a network that cannot be told them.
    """
    network, told = teacher.network, teacher.step_conditioned
    if len(plans) > 1 and not told:
        if not isinstance(network, UNet):
            raise ValueError(
                f"steps are {sorted(plans)} for a {type(network).__name__}; only a progdistill.nets.unet.UNet can be "
                "given an input for their number: fine-tune one student for each"
            )
        network, told = _with_step_input(network, seed), True
    else:
        network = copy_network(network)
    own = all(is_schedules_own(plan, teacher.schedule) for plan in plans.values())
    return teacher.with_network(
        network.requires_grad_(True),
        valid_steps=tuple(plans),
        step_conditioned=told,
        step_count=None,
        sampling_plans={} if own else plans,
    )


def _with_step_input(network: UNet, seed: int) -> UNet:
    with torch.random.fork_rng(devices=[]):  # equal in every process, and when a run is resumed
        torch.manual_seed(seed)
        told = UNet(dataclasses.replace(network.config, step_embed_dim=network.config.block_out_channels[0]))
    new = told.step_embedding.state_dict(prefix="step_embedding.")
    told.load_state_dict({**network.state_dict(), **new})
    return told.to(network.conv_in.weight.device)
