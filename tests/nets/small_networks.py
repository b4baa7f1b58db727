"""Networks of every kind, small, with weights and inputs."""

from __future__ import annotations

from dataclasses import replace

import torch

from progdistill.nets.config import UNetConfig
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet

BATCH = 3
SIZE = 8
SMALL = UNetConfig(
    block_out_channels=(16, 24),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
)
RESNET_LEVELS = replace(
    SMALL,
    down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
)
# Attention on the level that is resampled, so that its block reads `downsample_type` and `upsample_type`.
ATTENTION_ABOVE = replace(
    SMALL,
    down_block_types=("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
)


def narrow(name: str, *channels: int, **fields: object) -> UNetConfig:
    return replace(
        preset(name), sample_size=None, block_out_channels=channels, norm_num_groups=4, dropout=0.0, **fields
    )


CONFIGS = {
    "cifar10": narrow("cifar10", 16, 16, 16, attn_norm_num_groups=8),
    "imagenet64": narrow(
        "imagenet64", 8, 16, 24, 32, attention_head_dim=8, num_class_embeds=10, attn_norm_num_groups=4
    ),
    "lsun128": narrow("lsun128", 8, 8, 16, 24, 32, attention_head_dim=8, time_embedding_dim=24, attn_norm_num_groups=2),
    "ddpm-cifar10-32": narrow("ddpm-cifar10-32", 16, 24, 24, 24),
    "digits8": narrow("digits8", 8, 16),
    "small": SMALL,
    "classes": replace(SMALL, num_class_embeds=5),
    "class_embed_timestep": replace(SMALL, class_embed_type="timestep"),
    "class_embed_identity": replace(SMALL, class_embed_type="identity"),
    "scale_shift_without_middle_norm": replace(SMALL, resnet_time_scale_shift="scale_shift"),
    "scale_shift_with_middle_norm": replace(SMALL, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=3),
    "resnet_levels": RESNET_LEVELS,
    "attention_conv": ATTENTION_ABOVE,
    "attention_resnet": replace(ATTENTION_ABOVE, downsample_type="resnet", upsample_type="resnet"),
    "types_not_read": replace(SMALL, downsample_type="resnet", upsample_type="conv"),
    "padding_0": replace(SMALL, downsample_padding=0),
    "attention_padding_0": replace(ATTENTION_ABOVE, downsample_padding=0),
    "one_head": replace(SMALL, attention_head_dim=None),
    "sines_first": replace(SMALL, flip_sin_to_cos=False, freq_shift=1),
    "no_middle_attention": replace(SMALL, add_attention=False),
    "no_middle": replace(SMALL, mid_block_type=None),
    "middle_scale": replace(SMALL, mid_block_scale_factor=2**0.5),
    "learned_time": replace(SMALL, time_embedding_type="learned", num_train_timesteps=1000),
    "centred": replace(SMALL, center_input_sample=True),
    "wide_time": replace(SMALL, time_embedding_dim=20),
    "grey_to_two_heads": replace(SMALL, in_channels=1, out_channels=2),
    "two_layers_one_level": replace(
        SMALL,
        block_out_channels=(16,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=2,
        norm_eps=1e-2,
    ),
}


def random_weights(net: UNet, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that leave no branch at zero and no norm at one, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in net.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            weights[name] = 0.3 * noise + ("norm" in name and name.endswith("weight"))
        else:
            weights[name] = noise * value[0].numel() ** -0.5
    return weights


def inputs(config: UNetConfig, timesteps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    size = max(SIZE, 2 * config.size_divisor)
    sample = torch.randn((BATCH, config.in_channels, size, size), generator=generator)
    labels = None
    if config.class_embed_type == "identity":
        labels = torch.randn((BATCH, config.time_embed_dim), generator=generator)
    elif config.class_embed_type == "timestep" or config.num_class_embeds is not None:
        labels = torch.tensor([4, 0, 2])
    return sample, timesteps, labels


def gradients(net: UNet, given: tuple) -> dict[str, torch.Tensor]:
    """Those of a random linear form in the output, for the sample and all parameters, and the output itself."""
    sample = given[0].detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = net(sample, *given[1:])
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    wanted = {"sample": sample, **dict(net.named_parameters())}
    grads = torch.autograd.grad((output * weights).sum(), list(wanted.values()))
    return {"output": output.detach(), **dict(zip(wanted, grads, strict=True))}


def relative_error(values: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Root mean square over tensors of their relative errors. The keys' biases have no gradient but rounding."""
    names = [name for name in exact if not name.endswith("to_k.bias")]
    errors = [(values[name].double() - exact[name]).norm() / exact[name].norm() for name in names]
    return torch.stack(errors).square().mean().sqrt().item()
