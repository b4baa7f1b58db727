"""Tiny models of every kind with random weights, and what the literal formulas make of them in float64."""

import copy
import dataclasses

import torch

import literal
import tiny
from interop import models
from progdistill.core import Denoiser, TableSchedule
from progdistill.nets.unet import UNet

# Short of SNR 0, where an epsilon prediction says nothing.
MILD = TableSchedule.from_betas(torch.linspace(1e-3, 5e-3, 512, dtype=torch.float64))


def model(prediction_type="v_prediction", *, classes=None, **description):
    channels = 2 if prediction_type == "sample_epsilon" else 1
    network = dataclasses.replace(tiny.NETWORK, out_channels=channels, num_class_embeds=classes)
    return Denoiser(
        models.randomise(UNet(network)),
        sample_shape=(1, 8, 8),
        prediction_type=prediction_type,
        num_classes=classes,
        **description,
    )


@torch.no_grad()
def truth(denoiser, z, steps, labels=None, clip=None):
    """The literal formulas around a float64 copy of the network."""
    network, z = copy.deepcopy(denoiser.network).eval().double(), z.double()
    phis = denoiser.schedule.grid(steps)
    for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
        phi, phi_next = phi.expand(len(z)), phi_next.expand(len(z))
        inputs = (z, denoiser.time_map(phi)) if labels is None else (z, denoiser.time_map(phi), labels)
        z = literal.ddim(z, network(*inputs), phi, phi_next, denoiser.prediction_type, clip)
    return z.clamp(-1, 1)
