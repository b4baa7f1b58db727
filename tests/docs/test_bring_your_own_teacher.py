"""The Python of docs/bring-your-own-teacher.md runs, in order, on tiny files and networks of the right kinds.

What stands before its catalogue of teachers is in test_the_whole_way.py.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from interop import adm, released_unet
from interop import diffusers_models as theirs
from progdistill import Denoiser, sample
from progdistill.nets import presets

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-teacher.md"
# Sizes of the page's models, and of the files below.
SMALL = {
    "num_channels 192": "num_channels 32",
    "num_head_channels 64": "num_head_channels 32",
    "num_res_blocks 3": "num_res_blocks 1",
    "steps=50": "steps=2",
}


class Net(torch.nn.Module):
    """Stands for the networks that the page's reader has."""

    def __init__(self, heads=1):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3 * heads, 3, padding=1)

    def forward(self, state, time):
        return self.conv(state)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """What the reader has: files in the current folder, and networks by name."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    theirs.pipeline(tmp_path / "google" / "ddpm-cifar10-32")
    network = adm.Network(
        widths=(32, 64, 96, 128), attended=(False, True, True, True), new_order=True, classes=1000, out=6
    )
    torch.save(network.state_dict(), "64x64_diffusion.pt")
    tree = released_unet.random_parameters((32, 64), 1, (False, True), 1, emb=128)
    np.savez("cifar_original.npz", **tree)
    preset = dataclasses.replace(
        presets.PRESETS["cifar10"],
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )
    monkeypatch.setitem(presets.PRESETS, "cifar10", preset)
    net = Net()
    net.model = Net()
    return {"net": net, "velocity": Net(), "network": Net(), "wide_network": Net(heads=2)}


def test_its_blocks_run(reader):
    catalogue = PAGE.read_text().split("\n## Teachers in")[1]
    blocks = re.findall(r"^```python\n(.*?)^```", catalogue, flags=re.M | re.S)
    assert len(blocks) >= 8
    for block in blocks:
        for large, small in SMALL.items():
            block = block.replace(large, small)
        reader["teacher"] = None
        exec(compile(block, str(PAGE), "exec"), reader)
        teacher = reader["teacher"]
        assert isinstance(teacher, Denoiser)
        labels = 0 if teacher.num_classes else None
        images = sample(teacher, steps=1, batch_size=1, class_labels=labels, output_type="pt")
        assert images.shape == (1, *teacher.sample_shape) and images.isfinite().all()
