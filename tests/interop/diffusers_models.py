"""Small networks of diffusers with random weights, and what diffusers makes of them."""

import diffusers
import torch

from interop import models
from progdistill.core import Condition

# google/ddpm-cifar10-32's configuration with a sixteenth of its channels, on 16 pixels.
LOOK_ALIKE = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "attention_head_dim": None,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
}
SHAPE = (3, 16, 16)


def unet(seed=0, **changes):
    return models.randomise(diffusers.UNet2DModel(**{**LOOK_ALIKE, **changes}), seed).eval()


def pipeline(folder, *, network=None, scheduler=None, **options):
    """Writes a pipeline in sub-folders."""
    diffusers.DDPMPipeline(network or unet(), scheduler or diffusers.DDPMScheduler()).save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def assert_same_outputs(model, network, levels=(0, 37, 500, 999), labels=None, tolerance=1e-5):
    """The model's own network output at the angle of each level is the mean that diffusers' network predicts."""
    count = len(model.schedule.alphas_cumprod)
    for level in levels:
        z = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(level))
        phi = model.schedule.angle(torch.full((2,), (level + 1) / count, dtype=torch.float64))
        expected = network(z, level, labels).sample[:, : z.shape[1]]
        found = model.raw(z, phi, Condition(class_labels=labels))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
