"""The smallest network and data that a run can have."""

import dataclasses

import numpy as np

from progdistill.nets.config import UNetConfig

NETWORK = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    mid_block_type=None,
    layers_per_block=1,
    norm_num_groups=4,
)
WITH_DROPOUT = dataclasses.replace(NETWORK, dropout=0.1)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
