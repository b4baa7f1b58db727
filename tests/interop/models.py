"""Small models with random weights, none of them zero."""

import torch

from progdistill.core import Denoiser
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet


def config(**changes):
    small = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return UNetConfig(**{**small, **changes})


def randomise(module, seed=0):
    """Fills zeros too, so that every weight matters; the output stays of the order of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    with torch.no_grad():
        module.conv_out.weight.mul_(0.5)
    return module


def unet(seed=0, **changes):
    return randomise(UNet(config(**changes)), seed)


def denoiser(seed=0, *, network=None, sample_shape=(3, 8, 8), **description):
    return Denoiser(network or unet(seed), sample_shape=sample_shape, **description)
