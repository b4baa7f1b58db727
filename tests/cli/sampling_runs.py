"""For the tests of `progdistill sample`: tiny models with random weights, and runs that are interrupted."""

import dataclasses
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import progdistill
import tiny
from progdistill.cli import main
from progdistill.cli import sample as command
from progdistill.nets.unet import UNet

OUTPUTS = ("images.npz", "images.zip", "images", "grid.png")
COUNT, BATCH, SEED = 22, 8, 95


def model(channels=1, num_classes=None, seed=0):
    """A teacher (any step count) of 8x8 images whose weights are all different from zero."""
    network = dataclasses.replace(
        tiny.NETWORK, in_channels=channels, out_channels=channels, num_class_embeds=num_classes
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        unet = UNet(network)
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return progdistill.Denoiser(unet, sample_shape=(channels, 8, 8), num_classes=num_classes)


def save_model(folder, **options):
    """The same in a folder; returns its name."""
    progdistill.save(model(**options), folder)
    return str(folder)


@contextmanager
def before_part(number, act):
    """Calls `act` in the main thread before the images of a part (counted from 0 in this run) are made."""
    original = command.sample_parts

    def sample_parts(model, steps, parts, **options):
        for k, part in enumerate(parts):
            if k == number:
                act()
            yield from original(model, steps, [part], **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "sample_parts", sample_parts)
        yield


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def arguments(output, *more, model="grey"):
    """A command line; of an option that is given twice the last one counts."""
    options = {"--model": model, "--output": output, "--num-images": COUNT, "--max-batch-size": BATCH, "--seed": SEED}
    options |= {"--steps": 2, "--device": "cpu"} | dict(zip(more[::2], more[1::2], strict=True))
    return ["sample", *(str(word) for option in options.items() for word in option)]


def sample(output, *more, flags=(), **options):
    return main([*arguments(output, *more, **options), *flags])


def expected(model, labels=None):
    """(N, H, W, C), from the library: PIL images, part by part."""
    pictures = []
    for first in range(0, COUNT, BATCH):
        seeds = torch.arange(first, min(first + BATCH, COUNT)) + SEED
        part = None if labels is None else labels[first : first + BATCH]
        pictures += progdistill.sample(model, 2, seed=seeds, class_labels=part)
    return np.stack([np.asarray(picture).reshape(8, 8, -1) for picture in pictures])


def content(path):
    """All bytes of a file or folder, by name."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
