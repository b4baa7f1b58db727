"""Students that sample in no time."""

import dataclasses

import torch

from progdistill.core import Denoiser
from progdistill.nets.unet import UNet
from tiny import NETWORK


def student(seed=0, prediction_type="v_prediction", **changes):
    """A network whose every weight counts."""
    torch.manual_seed(seed)
    config = dataclasses.replace(
        NETWORK,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **changes,
    )
    network = UNet(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    classes = config.num_class_embeds
    return Denoiser(network, sample_shape=(1, 8, 8), prediction_type=prediction_type, num_classes=classes).eval()
