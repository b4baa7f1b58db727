"""The U-Net on the kernels of group_norm_silu: Triton's in its interpreter, and whatever serves a GPU."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nets.small_networks import CONFIGS, gradients, inputs, random_weights
from progdistill.nets.bfloat16_twin import bfloat16_twin
from progdistill.nets.pending_sum import sums_wait
from progdistill.nets.unet import UNet
from progdistill.ops import backends
from triton_interpreter import round_as_gpus

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAST = torch.channels_last
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
if INTERPRETED:
    round_as_gpus()


def network(name: str) -> UNet:
    net = UNet(CONFIGS[name]).eval()
    net.load_state_dict(random_weights(net))
    return net


def check_against_float64(name: str, device: str, batch: int) -> None:
    """Outputs and gradients, in float32 and of the bfloat16 twin."""
    given = inputs(CONFIGS[name], torch.tensor([999.0, 0.0, 37.5]))
    net, (sample, times, labels) = network(name), (None if t is None else t[:batch] for t in given)
    exact = gradients(copy.deepcopy(net).double(), (sample.double(), times, labels))
    sample = sample.to(device).contiguous(memory_format=LAST)
    assert sums_wait(sample) and not sums_wait(sample.double())
    given = (sample, times.to(device), None if labels is None else labels.to(device))
    for own, bound in ((net.to(memory_format=LAST), 2e-5), (bfloat16_twin(net), 0.1)):
        results = gradients(copy.deepcopy(own).to(device), given)
        assert results["output"].is_contiguous(memory_format=LAST)
        for key, value in exact.items():
            error = (results[key].cpu().double() - value).norm() / value.norm()
            # A bias of the keys has no gradient but rounding.
            assert error < bound or key.endswith("to_k.bias"), (key, error)


@pytest.mark.skipif(not INTERPRETED, reason="see test_in_the_interpreter")
@pytest.mark.parametrize("name", ["no_middle_attention", "two_layers_one_level"])
def test_triton(name):
    check_against_float64(name, "cpu", batch=1)


@pytest.mark.skipif(INTERPRETED, reason="runs itself")
@pytest.mark.skipif(
    backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
)
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PROGDISTILL_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-k", "triton"]
    done = subprocess.run(
        [*command, __file__], env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["digits8", "small", "imagenet64", "ddpm-cifar10-32"])
def test_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check_against_float64(name, "cuda", batch=3)


@pytest.mark.gpu
@needs_gpu
def test_no_kernel_converts_a_layout_on_a_gpu():
    twin = bfloat16_twin(network("ddpm-cifar10-32")).cuda()
    sample = torch.randn(16, 3, 32, 32, device="cuda").contiguous(memory_format=LAST)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        twin(sample, 7.0).square().mean().backward()
    names = [event.key for event in profile.key_averages()]
    # Of Triton's kernels the names are those of the functions.
    assert any(re.search("group_norm|^_whole$|^_normalise$", name) for name in names)
    assert not [name for name in names if re.search("nchwToNhwc|nhwcToNchw|convertTensor", name)]
