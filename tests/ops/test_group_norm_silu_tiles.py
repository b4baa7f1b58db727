"""Group normalisation by the CUDA kernels where whole groups fit into a block's shared memory."""

from unittest import mock

import pytest
import torch

from ops.norms import Norm, check, literal, results, tensors_of
from progdistill import ops
from progdistill.ops import group_norm_kernels, native


@pytest.fixture
def cuda(backend):
    """The CUDA kernels, emulated and, on a machine that has one, on a GPU."""
    if backend.name != "cuda":
        pytest.skip("has no tiles of this kind")
    return backend


def workspace(norm: Norm, dtype: torch.dtype, device: str, backward: bool, tile_bytes: int) -> int:
    shape = (norm.samples, norm.channels, norm.height, norm.width)
    x = torch.empty(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    skip = x.new_empty(norm.samples, norm.skip, *shape[2:]).contiguous(memory_format=torch.channels_last)
    views = native.view(x), native.view(skip) if norm.skip else None
    return native._C.group_norm_workspace(*views, norm.groups, backward, tile_bytes, native.run(x))


def reads_once(norm: Norm, dtype: torch.dtype, device: str, backward: bool, tile_bytes: int | None = None) -> bool:
    """Whether each image is read once: chunks leave partial sums in the workspace."""
    tile_bytes = group_norm_kernels.TILE_BYTES if tile_bytes is None else tile_bytes
    least = norm.samples * 2 * (norm.channels + norm.skip) if backward else 0
    return workspace(norm, dtype, device, backward, tile_bytes) == least


# Tiles have 64 bytes of each pixel or more, in whole groups: 32 channels of bfloat16, or 16 of float32.
TILES = {
    "a seam within a group": Norm(256, 128, 32, 16, 16),  # 48 or 24 channels
    "a narrower last tile": Norm(80, 0, 10, 16, 16),
    "a layer of ddpm-cifar10-32": Norm(128, 0, 32, 32, 32),
    "a column's channels in several groups": Norm(48, 16, 64, 16, 17),
    "a narrower last tile, channel by channel": Norm(26, 16, 14, 20, 20),
    "three channels": Norm(3, 0, 1, 32, 32),
    "one channel": Norm(1, 0, 1, 40, 40),
    "1536 channels, one by one": Norm(1533, 3, 32, 4, 4),
    "more columns than threads": Norm(2056, 8, 1, 1, 2),
    "more columns than threads, channel by channel": Norm(300, 1, 1, 3, 3),
    "one pixel": Norm(64, 64, 32, 1, 1),
}
SETTINGS = (
    {"shift": 1, "scale_shift": 2},
    {"shift": 0, "scale_shift": 1, "residual": True},
    {"silu": False, "residual": True},
    {"shift": 2, "sources": True},
    {"sources": True},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number, tiles", list(enumerate(TILES)), ids=TILES)
def test_tiles(cuda, number, tiles, dtype):
    norm = TILES[tiles]
    for backward in (False, True):
        assert reads_once(norm, dtype, cuda.device, backward)
    for setting in (SETTINGS[0], SETTINGS[1 + number % 2], SETTINGS[3 + number % 2]):
        check(cuda, norm._replace(**setting), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_tile_and_the_next_size(cuda, dtype):
    """Of the bytes that a tile may have: exactly as many as it takes, and one too few."""
    norm = Norm(40, 8, 12, 17, 16, shift=2, scale_shift=2, residual=True)
    for backward in (False, True):
        least, most = 0, group_norm_kernels.TILE_BYTES
        while most - least > 1:
            middle = (least + most) // 2
            fits = reads_once(norm, dtype, cuda.device, backward, middle)
            least, most = (least, middle) if fits else (middle, most)
        for tile_bytes in (most, least):
            with mock.patch.object(group_norm_kernels, "TILE_BYTES", tile_bytes):
                assert reads_once(norm, dtype, cuda.device, backward) == (tile_bytes == most)
                check(cuda, norm, dtype)


def test_samples_that_do_not_fit_are_read_twice(cuda):
    """64 x 64 pixels of groups of 6 channels, in units of 24; and tables that leave no room for two images."""
    large, wide = Norm(192, 0, 32, 64, 64, samples=1), Norm(3072, 0, 1, 1, 1)
    assert not any(reads_once(large, torch.bfloat16, cuda.device, backward) for backward in (False, True))
    assert [reads_once(wide, torch.float32, cuda.device, backward) for backward in (False, True)] == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_on_the_sample_alone(cuda, dtype):
    norm = Norm(64, 32, 8, 16, 17, samples=3, shift=3, scale_shift=3, residual=True)
    assert all(reads_once(norm, dtype, cuda.device, backward) for backward in (False, True))
    tensors = tensors_of(norm, dtype)
    alone = {name: value[1:2] if value.dim() > 1 else value for name, value in tensors.items()}

    def images(norm, tensors):
        t = {name: value.to(cuda.device).requires_grad_() for name, value in tensors.items()}
        outputs = ops.group_norm_silu(**t, groups=norm.groups, eps=norm.eps, backend=cuda.name)
        return *outputs, *torch.autograd.grad(outputs, [t[name] for name in ("x", "skip", "shift")], outputs)

    first, second = (results(ops.group_norm_silu, norm, tensors, cuda.device, backend=cuda.name) for _ in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole, single = images(norm, tensors), images(norm._replace(samples=1), alone)
    assert all(torch.equal(of_all[1], of_one[0]) for of_all, of_one in zip(whole, single, strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_a_mean_far_above_the_deviation_in_tiles(cuda, residual):
    """100 times, in groups that several warps share and that straddle the seam."""
    norm = Norm(256, 128, 32, 16, 16, samples=1, mean=100.0, shift=0, residual=residual)
    assert all(reads_once(norm, torch.float32, cuda.device, backward) for backward in (False, True))
    tensors = tensors_of(norm, torch.float32)
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    got = results(ops.group_norm_silu, norm, tensors, cuda.device, backend=cuda.name)
    for name, value in got.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=0, atol=3e-5 * exact[name].abs().max().item())
