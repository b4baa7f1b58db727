"""A model to time: random weights, none of them zero."""

from __future__ import annotations

import torch
from torch import nn

from progdistill.core import Denoiser
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet


def random_model(name: str, device: str) -> Denoiser:
    """A denoiser with the named network, its weights random, those that start as zeros too: each must count."""
    torch.manual_seed(0)
    config = preset(name)
    network = UNet(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model = Denoiser(
        network,
        sample_shape=(config.in_channels, config.sample_size, config.sample_size),
        prediction_type="sample_epsilon" if config.out_channels == 2 * config.in_channels else "v_prediction",
        num_classes=config.num_class_embeds,
    )
    return model.to(device).eval()
