"""Random damage to what others wrote: an error that names the file, or a model, never anything else."""

import random

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from interop import diffusers_models as theirs  # noqa: E402
from interop import released_unet  # noqa: E402
from interop.test_damaged_folders import mutated  # noqa: E402
from interop.test_salimans_ho import TINY, TREE  # noqa: E402
from progdistill.interop import load, load_salimans_ho  # noqa: E402

SMALL = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "sample_size": 8,
    "add_attention": False,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def outcomes(files, read, count):
    """How often a model came of it and how often an error, after damage to one of the files at a time."""
    pristine, rng, found = {file: file.read_bytes() for file in files}, random.Random(0), []
    for _ in range(count):
        file = rng.choice(files)
        file.write_bytes(mutated(pristine[file], rng))
        try:
            read()
            found.append("loaded")
        except (ValueError, OSError) as error:
            assert str(file.parent) in str(error)
            found.append("refused")
        file.write_bytes(pristine[file])
    return found.count("loaded"), found.count("refused")


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"max_shard_size": "10KB"}], ids=["bin", "parts"])
def test_folders_of_diffusers(tmp_path, options):
    theirs.pipeline(tmp_path, network=theirs.unet(**SMALL), **options)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file() and file.name != "model_index.json")
    loaded, refused = outcomes(files, lambda: load(tmp_path), 250)
    assert min(loaded, refused) >= 20


def test_archives_of_the_release(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, **released_unet.random_parameters(**TREE))
    loaded, refused = outcomes([file], lambda: load_salimans_ho(file, TINY), 100)
    assert refused >= 20 and loaded + refused == 100
