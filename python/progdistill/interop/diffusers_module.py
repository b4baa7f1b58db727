"""A UNet2DModel of diffusers that is in memory, as a network of ours."""

from __future__ import annotations

from typing import Any

from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet


def is_diffusers_unet(network: Any) -> bool:
    """Whether it is one, by its name: diffusers need not be installed."""
    return any(
        kind.__name__ == "UNet2DModel" and kind.__module__.startswith("diffusers.") for kind in type(network).__mro__
    )


def unet_of_diffusers(network: Any) -> UNet:
    """The same network with copies of the weights, in float32 and the same mode.

    Raises ValueError for an architecture that ours does not have.
    """
    config = UNetConfig.from_dict(dict(network.config))
    state = {name: tensor.detach().float().clone() for name, tensor in network.state_dict().items()}
    return UNet.of_weights(config, state).train(network.training)
