"""For the tests of `progdistill sample`: tiny models with random weights, and runs that are interrupted."""

import dataclasses
import os
import signal
from contextlib import contextmanager

import pytest
import torch

import progdistill
import tiny
from progdistill.cli import sample as command
from progdistill.nets.unet import UNet


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
