"""Group normalisation with its neighbours, against the formula in float64, forwards and backwards."""

import math

import pytest
import torch

from ops.norms import Norm, check, literal, results, tensors_of
from progdistill import ops

OPERATION = "group_norm_silu"


NETWORKS = {
    "ddpm-cifar10-32": [(c, s, 32) for c, s in [(128, 0), (256, 0), (512, 0), (256, 128), (256, 256), (128, 128)]],
    "ddpm-cifar10-32, decoder": [(512, 256, 32), (384, 0, 32), (640, 0, 32), (512, 128, 32)],
    "paper, CIFAR": [(256, 0, 32), (256, 256, 32)],
    "paper, ImageNet": [(192, 0, 32), (384, 192, 32), (576, 0, 32), (768, 768, 32), (1536, 0, 32), (1152, 0, 32)],
    "straddling": [(256, 128, 12), (40, 24, 4), (8, 16, 2), (3, 5, 2), (36, 12, 4)],
    "few": [(3, 0, 1), (1, 0, 1), (8, 0, 8), (5, 0, 5), (7, 4, 1), (16, 1, 17)],
    "most": [(2048, 1024, 32), (1031, 1, 4)],
}
SIZES = [size for sizes in NETWORKS.values() for size in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels, skip, groups", SIZES)
def test_channels_and_groups_of_the_networks(backend, channels, skip, groups, dtype):
    alone = groups == channels + skip  # a channel in its group: its shift changes nothing
    check(backend, Norm(channels, skip, groups, shift=None if alone else 2), dtype)
    check(backend, Norm(channels, skip, groups, residual=True, shift=None if alone else 0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("scale_shift", [0, 1, 2])
@pytest.mark.parametrize("shift", [None, 0, 1, 2])
@pytest.mark.parametrize("skip", [0, 8])
def test_every_combination(backend, skip, shift, scale_shift, residual, silu, dtype):
    options = {"shift": shift, "scale_shift": scale_shift, "residual": residual, "silu": silu}
    check(backend, Norm(16, skip, 4, **options), dtype)
    check(backend, Norm(7, skip and 5, 2 if skip else 1, 4, 5, values_dtype=dtype, **options), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (7, 5), (16, 16), (33, 31)])
def test_sizes_of_images(backend, height, width, dtype):
    """One pixel; fewer than threads share a column; several chunks, the last one shorter."""
    for channels, skip, groups in [(24, 16, 4), (5, 2, 1)]:
        check(backend, Norm(channels, skip, groups, height, width, shift=2, scale_shift=2, residual=True), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_chunks(backend, dtype):
    samples = 1 if backend.interpreted else 3
    check(backend, Norm(8, 8, 4, 80, 77, samples=samples, shift=samples, scale_shift=samples), dtype)
    check(backend, Norm(264, 0, 8, 18, 18, residual=True, shift=0), dtype)


def test_a_mean_far_above_the_deviation(backend):
    """100 times: what E[u^2] - E[u]^2 would get wrong in the third digit."""
    norm = Norm(32, 16, 4, 19, 17, mean=100.0, shift=2)
    tensors = tensors_of(norm, torch.float32)
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
    for name, value in got.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=0, atol=3e-5 * exact[name].abs().max().item())


def test_one_number_far_off(backend):
    """The first of its group, which sums are shifted by."""
    norm = Norm(16, 0, 2, 12, 12)
    tensors = tensors_of(norm, torch.float32)
    tensors["x"][:, 0, 0, 0] = 1e4
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
    torch.testing.assert_close(got["y"].double(), exact["y"], rtol=1e-5, atol=1e-5)


def test_a_constant_image_is_its_bias(backend):
    for value in (0.0, 3.7, -1e4):
        x = torch.full((2, 8, 5, 5), value).contiguous(memory_format=torch.channels_last)
        bias = torch.arange(8.0)
        y = backend.call(ops.group_norm_silu, x, torch.ones(8), bias, 4, 1e-6, silu=False)
        torch.testing.assert_close(y, bias.reshape(1, 8, 1, 1).expand(2, 8, 5, 5), rtol=0, atol=abs(value) * 1e-4)


def test_what_is_not_finite_stays_in_its_group(backend):
    for bad in (math.nan, math.inf):
        norm = Norm(16, 0, 4, 3, 3)
        tensors = tensors_of(norm, torch.float32)
        tensors["x"][1, 5, 1, 1] = bad
        y = backend.call(ops.group_norm_silu, *(tensors[name] for name in ("x", "weight", "bias")), 4, 1e-6)
        touched = torch.zeros(2, 16, dtype=torch.bool)
        touched[1, 4:8] = True
        assert torch.equal(~y.isfinite().all(dim=(2, 3)), touched)


def test_parts_of_the_gradient(backend):
    """Only what is asked for; y or the sum alone; frozen tensors."""
    norm = Norm(16, 8, 4, 4, 5, residual=True, shift=2, scale_shift=1)
    tensors = tensors_of(norm, torch.float32)
    for wanted in ("x", "skip", "shift", "weight", "scale_shift", "residual"):
        for part in (0, 1):
            found = []
            for name, device in ((backend.name, backend.device), ("reference", "cpu")):
                t = {key: value.detach().to(device) for key, value in tensors.items()}
                t[wanted].requires_grad_()
                output = ops.group_norm_silu(**t, groups=4, eps=1e-6, backend=name)[part]
                if not output.requires_grad:
                    continue
                (gradient,) = torch.autograd.grad(output.sum(), t[wanted], allow_unused=True)
                found.append(torch.zeros_like(t[wanted]).cpu() if gradient is None else gradient.cpu())
            if found:
                torch.testing.assert_close(found[0], found[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual, sources", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("scale_shift", [0, 1, 2])
@pytest.mark.parametrize("silu", [False, True])
def test_gradcheck_of_the_reference(residual, sources, scale_shift, silu):
    given = {"shift": scale_shift, "scale_shift": scale_shift, "residual": residual}
    norm = Norm(4, 2, 3, 2, 2, **given, silu=silu, sources=sources, eps=1e-2)
    tensors = tensors_of(norm, torch.float64)
    names = list(tensors)

    def call(*values):
        given = dict(zip(names, values, strict=True))
        return ops.group_norm_silu(**given, **norm.options)

    leaves = [value.double().requires_grad_() for value in tensors.values()]
    assert torch.autograd.gradcheck(call, leaves)
    torch.testing.assert_close(call(*leaves), literal(**dict(zip(names, leaves, strict=True)), **norm.options))


@pytest.fixture
def on_gpu(backend):
    """The compiled backends where they are at home: graphs and large images are not for emulators."""
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    return backend


@pytest.mark.parametrize(
    "channels, skip, size", [(128, 0, 32), (256, 128, 32), (256, 0, 16), (512, 256, 8), (256, 0, 4)]
)
def test_layers_of_ddpm_cifar10_at_their_sizes(on_gpu, channels, skip, size):
    for options in ({"shift": 4}, {"shift": 0, "residual": True}):
        check(on_gpu, Norm(channels, skip, 32, size, size, samples=4, **options), torch.bfloat16)
